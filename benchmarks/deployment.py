"""A SuperLink, a SuperExec, a ServerApp and the reverse proxy, all real, with many light sites.

    python benchmarks/deployment.py sites                 forty sites, five rounds
    python benchmarks/deployment.py malformed             10,000 malformed contributions

Memory is resident memory (VmRSS) of the server's processes. `malformed` plays the run without attackers first, and
compares what the honest sites measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1] / "tests" / "tools"))

from crowds import Attacked, Played, Record, attack, many_sites


def print_sites(played: Played) -> None:
    table = Table(title=f"{len(played.records[0]['cohort'])} sites", title_justify="left")
    for heading in ("step", "seconds", "accepted", "rejected", "KiB up", "superlink", "superexec", "serverapp", "MiB"):
        table.add_column(heading, justify="right")
    for record, sizes in zip(played.records, played.memory.steps, strict=True):
        told = [f"{record['kind']} {record['step']}", f"{record['seconds']:.1f}", str(len(record["accepted"]))]
        told += [str(len(record["rejected"])), f"{record['bytes']['up'] / 1024:.0f}"]
        table.add_row(*told, *(_mib(size) for size in sizes.values()), _mib(sum(sizes.values())))
    most = played.memory.most
    table.add_row("peak", *[""] * 4, *(_mib(size) for size in most.values()), _mib(sum(most.values())))
    Console(width=120).print(table)
    together = f"peaks together {_mib(sum(most.values()))} MiB, at one time {_mib(played.memory.together)}"
    print(f"{played.run.status}; {together}")


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f}"


def print_attack(found: Attacked) -> None:
    table = Table(title="Malformed contributions", title_justify="left")
    for heading in ("kind", "reason", "count"):
        table.add_column(heading, justify="right" if heading == "count" else "left")
    for name, reasons in sorted(found.reasons().items()):
        for reason, count in reasons.most_common():
            table.add_row(name, reason, str(count))
    Console(width=120).print(table)
    counts = sum(found.reasons().values(), Counter())
    print(f"{counts.total():,} contributions of attackers: {dict(counts.most_common())}")
    print(f"rejected for another reason than expected: {found.wrong() or 'none'}")
    for way, taken in found.diary.refused.items():
        print(f"refused by Flower: {way}: {taken.count(False):,} of {len(taken):,}")
    for title, played in (("without attackers", found.alone), ("with them", found.attacked)):
        print_memory(title, played)
    print(f"{found.attacked.run.status}, {len(found.attacked.records)} steps committed")
    print(f"honest sites' numbers as without attackers: {found.same()}")


def print_memory(title: str, played: Played) -> None:
    """Memory after the first round, after a tenth and after quarters of all, and after the last."""
    rounds = played.memory.steps[1:-1]
    shown = sorted({0, len(rounds) // 10, *(len(rounds) * quarter // 4 for quarter in (1, 2, 3)), len(rounds) - 1})
    table = Table(title=f"MiB after a round, {title}", title_justify="left")
    for heading in ("round", *rounds[0], "together", "growth"):
        table.add_column(heading, justify="right")
    for number in shown:
        sizes, together = rounds[number], sum(rounds[number].values())
        growth = together / sum(rounds[0].values()) - 1
        row = [f"{size / 2**20:.1f}" for size in (*sizes.values(), together)]
        table.add_row(str(number + 1), *row, f"{growth:+.1%}")
    Console(width=120).print(table)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sites", "malformed"])
    parser.add_argument("--sites", type=int, default=40, help="honest sites, or attackers")
    parser.add_argument("--honest", type=int, default=3, help="honest sites beside attackers")
    parser.add_argument("--rounds", type=int, help="5 with honest sites; 250 with attackers")
    parser.add_argument("--codec", default="raw", help="how arrays travel, with attackers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--poll", type=float, help="seconds between two looks of a site for messages; 3, or 1")
    parser.add_argument("--keep", type=Path, help="folder to keep; a temporary one otherwise")
    options = parser.parse_args()
    begun = time.monotonic()

    def tell(record: Record) -> None:
        seconds = f"{time.monotonic() - begun:.0f} s: {record['kind']} {record['step']} in {record['seconds']:.1f} s"
        print(f"{seconds}, {len(record['accepted'])} accepted, {len(record['rejected'])} rejected", flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder = options.keep or Path(place) / "world"
        if options.what == "sites":
            poll = options.poll or 3.0
            print_sites(many_sites(folder, count=options.sites, rounds=options.rounds or 5, poll=poll, tell=tell))
        else:
            print_attack(
                attack(
                    folder,
                    honest_sites=options.honest,
                    attackers=options.sites,
                    rounds=options.rounds or 250,
                    codec=json.loads(options.codec) if options.codec.startswith("{") else options.codec,
                    seed=options.seed,
                    poll=options.poll or 1.0,
                    deadline=120.0,
                    tell=tell,
                )
            )


if __name__ == "__main__":
    main()
