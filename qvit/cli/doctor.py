"""`qvit doctor`: what a bug report needs."""

from qvit.cli.session import Result, Session, outline, verb


@verb("doctor")
def command(session: Session) -> Result:
    """Check this machine and installation, and show what a bug report needs."""
    from qvit import doctor

    found = doctor.examine()
    text = outline({key: value for key, value in found.items() if key != "problems"})
    verdict = "\n".join(f"  ! {line}" for line in found["problems"]) or "  none"
    return Result(found, f"{text}\nproblems:\n{verdict}")
