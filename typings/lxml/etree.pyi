"""What we use of lxml, which is not typed."""

from collections.abc import Iterator
from typing import Any

class XMLSyntaxError(SyntaxError): ...

class XMLParser:
    error_log: list[Any]
    def __init__(self, **options: bool) -> None: ...

class iterparse(Iterator[tuple[str, Any]]):
    error_log: list[Any]
    def __init__(self, source: Any, events: tuple[str, ...], **options: Any) -> None: ...
    def __next__(self) -> tuple[str, Any]: ...

def parse(source: Any, parser: XMLParser) -> Any: ...
