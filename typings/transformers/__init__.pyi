"""What we use of transformers. Its own types take a checker minutes: the package's face imports all its models."""

from collections.abc import Callable
from typing import Any

default_data_collator: Callable[[list[Any]], dict[str, Any]]

class Trainer:
    args: Any
    model: Any
    state: Any
    train_dataset: Any
    def __init__(self, *arguments: Any, **named: Any) -> None: ...
    def train(self, **named: Any) -> Any: ...

def __getattr__(name: str) -> Any: ...
