"""Reading of machine code: instructions, loops, the one with the matrix products."""

from benchmarks.static.sass import main_loop, read_sass

STRAIGHT = """
\t.section\t.text.k,"ax",@progbits
.text.k:
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, [R2.64] ;
        /*0020*/               @P1 EXIT ;
        /*0030*/                   IMMA.16832.S8.S8.SAT R8, R4.ROW, R6.COL, R8 ;
        /*0040*/                   EXIT ;
.L_x_0:
        /*0050*/                   BRA `(.L_x_0);
        /*0060*/                   NOP;
.L_x_1:
"""

# A loop in a loop, and a wait that was moved behind the end and leads back into the middle of the inner one.
NESTED = """
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_1:
        /*0010*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0020*/                   IMMA.16832.S8.S8 R8, R4.ROW, R6.COL, R8 ;
.L_x_2:
        /*0030*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR4], R3 ;
        /*0040*/              @!P2 BRA `(.L_x_9) ;
.L_x_3:
        /*0050*/                   IGMMA.64x128x32.S8.S8 R24, gdesc[UR8], R24 ;
        /*0060*/                   IGMMA.64x128x32.S8.S8 R24, gdesc[UR8], R24 ;
        /*0070*/              @!P0 BRA `(.L_x_2) ;
        /*0080*/               @P1 BRA `(.L_x_1) ;
        /*0090*/                   STG.E [R2.64], R24 ;
        /*00a0*/                   EXIT ;
.L_x_9:
        /*00b0*/                   NANOSLEEP 0x20 ;
        /*00c0*/                   BRA `(.L_x_3) ;
.L_x_10:
        /*00d0*/                   BRA `(.L_x_10);
        /*00e0*/                   NOP;
"""

# Two loops; the second waits in a loop of its own, without products.
SEVERAL = """
.L_x_1:
        /*0000*/                   IMMA.16832.S8.S8 R8, R4.ROW, R6.COL, R8 ;
        /*0010*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0020*/                   LDS R4, [R2] ;
        /*0030*/                   IMMA.16832.S8.S8 R8, R4.ROW, R6.COL, R8 ;
        /*0040*/                   IMMA.16832.S8.S8 R9, R4.ROW, R6.COL, R9 ;
.L_x_3:
        /*0050*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [UR4], R3 ;
        /*0060*/              @!P2 BRA `(.L_x_3) ;
        /*0070*/              @UP0 BRA.U `(.L_x_4) ;
        /*0080*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*0090*/                   EXIT ;
"""

# The branch upwards is not a loop: a way around its target leads into the middle.
TANGLED = """
        /*0000*/               @P0 BRA `(.L_x_2) ;
.L_x_1:
        /*0010*/                   IMMA.16832.S8.S8 R8, R4.ROW, R6.COL, R8 ;
.L_x_2:
        /*0020*/                   IMMA.16832.S8.S8 R8, R4.ROW, R6.COL, R8 ;
        /*0030*/               @P1 BRA `(.L_x_1) ;
        /*0040*/                   EXIT ;
"""


def test_instructions_without_padding():
    listing = read_sass(STRAIGHT)
    names = [instruction.name for instruction in listing.instructions]
    assert names == ["IMAD", "LDG", "EXIT", "IMMA", "EXIT"]
    assert [instruction.guarded for instruction in listing.instructions[:3]] == [False, True, True]
    assert listing.instructions[3].opcode == "IMMA.16832.S8.S8.SAT"
    assert listing.count("LDG", "EXIT") == 3
    assert main_loop(listing) is None


def test_a_guarded_exit_does_not_end():
    ends = [instruction.ends for instruction in read_sass(STRAIGHT).instructions]
    assert ends == [False, False, False, False, True]


def test_innermost_loop_with_what_lies_behind_the_end():
    loop = main_loop(read_sass(NESTED))
    assert loop is not None
    names = [instruction.name for instruction in loop.instructions]
    assert names == ["SYNCS", "BRA", "IGMMA", "IGMMA", "BRA", "NANOSLEEP", "BRA"]
    assert loop.count("IGMMA", "IMMA") == 2


def test_loop_with_most_products():
    loop = main_loop(read_sass(SEVERAL))
    assert loop is not None
    assert loop.count("IMMA") == 2
    assert len(loop.instructions) == 7


def test_a_branch_upwards_alone_is_no_loop():
    assert main_loop(read_sass(TANGLED)) is None


def test_nothing():
    assert read_sass("").instructions == []
    assert main_loop(read_sass("")) is None
