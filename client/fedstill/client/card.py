"""The card of an exported student: everything that one has to know to use it, in one JSON file beside the model.

Free of torch and Flower, as is all that predicts with an exported student.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from fedstill.common.data.content import unreadable
from fedstill.common.data.preparation import PREPARATIONS, Preparation
from fedstill.common.data.readers import READERS, Reader
from fedstill.common.errors import DataError
from fedstill.common.labels import Classes

CARD = "card.json"
"""Name of the file."""

FORMAT = 1
"""Version of the card; a reader refuses another one."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a student comes from.

    Attributes:
        fedstill: version that exported it.
        run: name of the run; "" if it is not known.
        client: whose student it is; "" for the run's teacher.
        step: after which step of the run.
        weights: SHA-256 of the weights' names and numbers, hexadecimal.
        proxy: digest of the prepared proxy set.
        tokenizer: digest of what makes the token ids; "" where there is nothing to agree on.
    """

    fedstill: str
    run: str
    client: str
    step: int
    weights: str
    proxy: str
    tokenizer: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    """What the model is and needs.

    Attributes:
        task, kind: the task's name in the run, and its kind.
        output, modality, classes, input_shape, vocabulary, positions: as in `TaskSpec`; classes are those it knows.
        input_type: "float32", or "int64" for token ids.
        model: architecture.
        parameters: number of weights.
        origin: where it comes from.
        format: of the file: "onnx" or "torch-export".
        precision: "fp32" or "int8".
        file: name of the model's file.
        files: SHA-256 of each file beside the card, by its name.
        preparation: None if only the task's own code can prepare inputs.
        reader: None if it reads arrays only.
        lead, new_only, scale: as in `Usage`.
        measured: what the check and the clock said when it was exported.
    """

    task: str
    kind: str
    output: str
    modality: str
    classes: Classes
    input_shape: tuple[int, ...]
    input_type: Literal["float32", "int64"]
    vocabulary: int
    positions: tuple[int, ...]
    model: str
    parameters: int
    origin: Origin
    format: str
    precision: str
    file: str
    files: Mapping[str, str]
    preparation: Preparation | None = None
    reader: Reader | None = None
    lead: int | None = None
    new_only: bool = False
    scale: tuple[float, float] = (0.0, 1.0)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """JSON text; `read_card` is the inverse."""
        table = {key.name: getattr(self, key.name) for key in fields(self)}
        table |= {
            "card": FORMAT,
            "origin": asdict(self.origin),
            "preparation": card_table(self.preparation),
            "reader": card_table(self.reader),
        }
        return json.dumps(table, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def read_card(folder: Path) -> Card:
    """The card in a folder of an exported student; the files beside it are those that it names.

    Raises:
        DataError: if there is none, it is damaged or of another version, or a file differs from what was exported.
    """
    cure = "name a folder that 'fedstill export' wrote"
    path = folder / CARD
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"exported student {folder}", f"expected {CARD} there: {error.strerror or error}", cure
        ) from None
    except ValueError as error:
        raise DataError(f"{path}", f"is no JSON: {error}", cure) from None
    if not isinstance(table, dict) or table.pop("card", None) != FORMAT:
        raise DataError(f"{path}", f"expected a card of version {FORMAT}", "export the student again")
    try:
        table |= {
            "origin": Origin(**table["origin"]),
            "preparation": from_card_table(PREPARATIONS, table["preparation"]),
            "reader": from_card_table(READERS, table["reader"]),
            **{key: tuple(table[key]) for key in ("classes", "input_shape", "positions", "scale")},
        }
        card = Card(**table)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}", f"is damaged: {error}", "export the student again") from None
    for name in {card.file, str(getattr(card.reader, "tokenizer", ""))} - {"", *card.files}:
        raise DataError(f"{path}: file '{name}'", "expected a file that the card names with its digest")
    for name, digest in card.files.items():
        if Path(name).name != name:
            raise DataError(f"{path}: file '{name}'", "expected a file beside the card")
        if file_digest(folder / name) != digest:
            raise DataError(f"{folder / name}", "is not the file that was exported", "export the student again")
    return card


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from None


def card_table(value: Preparation | Reader | None) -> dict[str, Any] | None:
    """A preparation or a reader as JSON has it; None for none."""
    if value is None:
        return None
    told: Any = value
    return {"kind": value.kind, **asdict(told)}


def from_card_table(kinds: Mapping[str, type[Any]], table: Mapping[str, Any] | None) -> Any:
    """The inverse of `card_table`.

    Raises:
        ValueError, KeyError, TypeError: if the kind or an option is not known.
    """
    if table is None:
        return None
    options = dict(table)
    kind = kinds.get(options.pop("kind"))
    if kind is None:
        raise ValueError(f"kind '{table['kind']}' is not known")
    return kind(**{key: _frozen(value) for key, value in options.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
