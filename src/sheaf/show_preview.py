"""What a person sees of `sheaf trace --preview`: samples as they will be trained.

A line begins with `|` where its tokens are predicted and with `:` where they are only read; ⟦…⟧ is a control token, ↵ a
line's end in the text. Colours say the same once more, so that nothing is lost where there are none. As in `show.py`,
every string of the data is escaped before it is drawn.
"""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.text import Text

from sheaf.console import printable
from sheaf.drawing import line, origin
from sheaf.show import Parts

Json = dict[str, Any]
COLOURS = ("cyan", "magenta", "green", "yellow", "blue")  # of documents, in turn
LINE_END = "↵"


def previewed(data: Json) -> Parts:
    length, endless = data["sequence_length"], data["steps"] is None
    steps = "any number of steps" if endless else f"{data['steps']:,} steps"
    parts: list[RenderableType] = [
        line(f"corpus {data['corpus'][:12]}: samples of {length:,} tokens, {data['batch']:,} a step, {steps}"),
        line("| is predicted, : is only read, ⟦…⟧ is a control token", style="dim"),
    ]
    for sample in data["samples"]:
        head = (
            f"step {sample['step']}, sample {sample['sample']}: {sample['source']}, epoch {sample['epoch']}; "
            f"{sample['positions']:,} tokens, {sample['predicted']:,} predicted, "
            f"{length - sample['positions']:,} of padding"
        )
        parts.append(line(head, style="bold"))
        for number, document in enumerate(sample["documents"]):
            parts += _document(document, COLOURS[number % len(COLOURS)])
    return parts if data["samples"] else [*parts, line("there is not enough for one step")]


def _document(document: Json, colour: str) -> Parts:
    start, end = document["tokens"]
    whole = "whole" if end - start == document["length"] else f"of {document['length']:,}"
    head = f"── record {document['record']}, tokens {start:,} to {end:,} ({whole}), {document['predicted']:,} predicted"
    froms = [line(f"   from {origin(place)}", style="dim") for place in document["origins"]]
    return [line(head, style=colour), *froms, *_lines(document["pieces"], colour)]


def _lines(pieces: list[Json], colour: str) -> list[Text]:
    """A new line where the text has one, and where what is predicted begins or ends."""
    drawn: list[Text] = []
    fresh, predicted = True, False
    for piece in pieces:
        fresh = fresh or piece["predicted"] != predicted
        predicted = piece["predicted"]
        style = "reverse" if piece["special"] else "" if predicted else "dim"
        rows = [piece["text"]] if piece["special"] else piece["text"].split("\n")
        for number, row in enumerate(rows):
            last = number == len(rows) - 1
            if last and not row:
                continue
            if fresh:
                drawn.append(Text("| " if predicted else ": ", style=colour))
            shown = printable(row).replace("\n", "\\n")
            drawn[-1].append(f"⟦{shown}⟧" if piece["special"] else shown, style=style)
            if not last:
                drawn[-1].append(LINE_END, style="dim")
            fresh = not last
    return drawn
