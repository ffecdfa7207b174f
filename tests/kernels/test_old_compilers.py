"""What kernels may not contain, since the oldest Triton that is supported refuses it and the newer ones do not."""

import ast
from pathlib import Path

import pytest

import qvit_kernels

FILES = sorted(Path(qvit_kernels.__file__).parent.glob("*.py"))


def nones_returned(source: str) -> list[str]:
    """Names of functions under `triton.jit` that return None in so many words."""
    return [
        function.name
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef)
        and any("triton.jit" in ast.unparse(decorator) for decorator in function.decorator_list)
        for node in ast.walk(function)
        if isinstance(node, ast.Return)
        and isinstance(node.value, ast.Constant)
        and node.value.value is None
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_kernel_returns_none(path):
    """Triton 3.6: "cannot convert None of type <class 'NoneType'> to tensor", for every launch that calls it."""
    assert not nones_returned(path.read_text(encoding="utf-8"))


def test_what_is_looked_for_is_found():
    source = "@triton.jit\ndef f(x):\n    if x:\n        return x\n    else:\n        return None\n"
    assert nones_returned(source) == ["f"]
