# pyarrow makes most of its names at import time; a checker cannot see them.
from typing import Any

def __getattr__(name: str) -> Any: ...
