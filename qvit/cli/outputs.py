"""Files that a verb was asked to write: refused before anything is measured for them, written whole or not at all."""

from pathlib import Path

from qvit.errors import UsageError


def check_file(option: str, path: Path) -> None:
    """Raises UsageError for a file that could not be written; makes the folder it shall lie in."""
    import tempfile

    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Written beside and renamed."""
    from qvit.synthesis.shards import write_whole

    write_whole(path, text.encode())
