"""`qvit models`: the names that work."""

from qvit.cli.session import Result, Session, tabulate, verb

_COLUMNS = {
    "alias": "alias",
    "timm_name": "timm name",
    "params_millions": "M params",
    "input": "input",
    "quantizable": "quantizable",
    "license": "licence of the weights",
}


@verb("models")
def command(session: Session) -> Result:
    """List the aliases, the timm weights they are pinned to, and what can be quantized.

    Any other timm name with tag works as well, as long as it is a plain Vision Transformer.
    """
    from qvit import zoo

    rows = zoo.catalogue()
    shown = [row | {"input": "x".join(map(str, row["input_size"]))} for row in rows]
    return Result({"models": rows}, tabulate(shown, _COLUMNS))
