"""Tables of the benchmark: medians, ratios, and whether the bars were met."""

import statistics
import sys


def progress(text: str) -> None:
    """One line that replaces itself, on a terminal; a line of its own elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


class Report:
    """Prints rows as they come and remembers those that have a bar."""

    def __init__(self) -> None:
        self.verdicts: list[tuple[str, str, str, bool]] = []
        self.title = ""

    def head(self, title: str, unit: str) -> None:
        """Begins a table."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        self.title = title
        print(f"\n{title}")
        print(f"  {'':<44} {'ours, ' + unit:>10} {'diffusers':>10} {'ratio':>6} {'bar':>5}")

    def row(self, name: str, ours: list[float], theirs: list[float], bar: float | None) -> None:
        """Medians of both and their ratio."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        mine, peer = statistics.median(ours), statistics.median(theirs)
        ratio = mine / peer
        shown = "" if bar is None else f"{bar:.2f}"
        print(f"  {name:<44} {mine:>10.5f} {peer:>10.5f} {ratio:>6.2f} {shown:>5}", flush=True)
        if bar is not None:
            self.verdicts.append((name, f"{ratio:.2f}", f"{bar:.2f}", ratio <= bar))

    def own(self, name: str, ours: float, theirs: float, bar: float, unit: str) -> None:
        """A figure of ours that has a bar of its own; theirs for comparison."""
        mine, peer, limit = (f"{x:.0f}" if unit == "MiB" else f"{x:.2f}" for x in (ours, theirs, bar))
        print(f"  {name:<44} {mine:>6} {unit:<3} {peer:>6} {unit:<3} {'':>6} {limit:>5}", flush=True)
        self.verdicts.append((f"{name} ({self.title.split(',')[0].split(' (')[0]})", mine, limit, ours <= bar))

    def close(self) -> None:
        """The closing table."""
        if not self.verdicts:
            return
        print(f"\n  {'bars':<72} {'got':>6} {'bar':>6}")
        for name, got, bar, met in self.verdicts:
            print(f"  {name:<72} {got:>6} {bar:>6}  {'met' if met else 'MISSED'}")
