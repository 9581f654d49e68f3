"""A site's own data, read by the task's kind and brought into the form of the public samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fedstill.client.site import Site
from fedstill.common.data.federation import ClientData
from fedstill.common.data.pack import Pack, PublicTask
from fedstill.common.errors import DataError, nearest
from fedstill.common.labels import Classes, positions
from fedstill.common.outputs import IGNORE
from fedstill.common.seeding import numpy_rng
from fedstill.common.task import Examples, ReadsColumns, TaskData

_BY_NAME = ("categorical", "token-level")
"""Output kinds whose targets are positions in a label space, so that another source's can be found by name."""


def read_own(site: Site, pack: Pack, name: str, public: PublicTask) -> ClientData:
    """Raw examples of a site's own source, over the pack's label space; a share of them is kept aside.

    Everything that the source has is the site's, what the kind would set aside as a test part too.

    Raises:
        ConfigError: for an option that the kind does not have.
        DataError: if the source is missing or broken, or of another form than the public samples.
    """
    task, folder, told = site.kind(pack, name), Path(site.data), pack.task(name)
    if told.columns and isinstance(task, ReadsColumns):
        data = task.load_columns(folder, told.columns)
    else:
        data = task.load(folder)
    _check(f"task '{name}' of {site.name}", data, public)
    examples = _all(data, public.spec.classes)
    order = numpy_rng(0, "holdout", site.name, name).permutation(len(examples))
    kept = int(len(examples) * site.tasks[name].holdout)
    return ClientData(
        examples.take(np.sort(order[kept:])), examples.take(np.sort(order[:kept])), classes=public.spec.classes
    )


def _check(what: str, data: TaskData, public: PublicTask) -> None:
    spec = public.spec
    pairs = {
        "vocabulary": (data.vocabulary, spec.vocabulary),
        "tokenizer": (data.tokenizer[:12] or "none", spec.tokenizer[:12] or "none"),
        "output positions": (data.positions, spec.positions),
    }
    for part, (own, wanted) in pairs.items():
        if own != wanted:
            raise DataError(f"{what}: {part} {own}", f"expected {wanted}, as the pack has", "use the pack's options")
    if data.classes != spec.classes and spec.output not in _BY_NAME:
        raise DataError(
            f"{what}: {len(data.classes)} classes or items of its own",
            f"expected the pack's {len(spec.classes)} in their order, for output kind '{spec.output}'",
            "have the site's examples written in the pack's form",
        )
    strange = [one for one in data.classes if one not in spec.classes]
    if strange:
        raise DataError(
            f"{what}: class '{strange[0]}'", "expected a class of the pack", nearest(strange[0], spec.classes)
        )


def _all(data: TaskData, space: Classes) -> Examples:
    parts = [part for part in (data.pool, data.test) if part is not None]
    targets = torch.cat([part.targets for part in parts])
    if data.classes != space:
        place = torch.from_numpy(positions(data.classes, space))
        targets = torch.where(targets == IGNORE, IGNORE, place[targets.clamp(min=0)])
    return Examples(torch.cat([part.inputs for part in parts]), targets)
