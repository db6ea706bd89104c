"""Draw the pictures of the architecture page from the code: the rooms with their imports, and the path of a message.

    python -m docs.pictures            write docs/explanation/{house,path-in,path-out}.svg
    python -m docs.pictures FOLDER     write them to another folder

The pictures contain no manual data. The rooms and their order are those of ``tests/test_house.py``, the imports are
read from the syntax trees, and the two paths are recorded while an app runs over real sockets. Colours have a medium
lightness and no background, so that the pictures are readable in a light and in a dark theme.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from types import CodeType, FrameType
from xml.sax.saxutils import escape

import attrs

from tests.test_house import LAW, PACKAGE, modules, own, parsed, room
from zroute import App
from zroute.runtime.runner import run, stop

HERE = Path(__file__).parent / "explanation"
TEXT, LINE, ROOM, EDGE = "#7d8590", "#7d859066", "#2f81f7", "#9a8c6f"
WIDTH = 860
GENERATED = "generated code"
RECORDED = 4
"""The number of the recorded incoming message: the first messages of a topic take a longer path."""


# -- SVG -------------------------------------------------------------------------------------------------


def svg(title: str, height: int, parts: Sequence[str]) -> str:
    """Return a whole picture of ``parts``; screen readers read ``title``."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'font-family="system-ui, sans-serif" font-size="12" fill="{TEXT}">',
            f"<title>{escape(title)}</title>",
            *parts,
            "</svg>",
            "",
        ]
    )


def text(x: float, y: float, words: str, **attributes: object) -> str:
    """Return a line of text; ``font_weight`` is written as font-weight."""
    given = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in attributes.items())
    return f'<text x="{x:g}" y="{y:g}"{given}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, stroke: str) -> str:
    """Return a rounded frame without filling."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" fill="none" stroke="{stroke}"/>'


# -- the house -------------------------------------------------------------------------------------------


@attrs.frozen
class Room:
    """A room of the house: the number of its modules, its purpose, and the rooms that it imports from."""

    name: str
    modules: int
    purpose: str
    imports: set[str]


def rooms() -> list[Room]:
    """Return all rooms in the order of the import law: each room follows the rooms that it imports from."""
    return [survey(name) for name in LAW]


def survey(name: str) -> Room:
    """Count the modules of a room, and find the rooms that they import from."""
    inside = [module for module in modules() if room(module) == name]
    imports = {room(other) for module in inside for other in own(module)} - {name}
    holding = [module for module in inside if modules()[module].name != "__init__.py" or len(parsed(module).body) > 1]
    return Room(name, len(holding), purpose(name), imports)


def purpose(name: str) -> str:
    """Return the first line of a room's docstring, up to its first full stop."""
    if name == "ground":
        return ", ".join(module for module in modules() if room(module) == name)
    document = (ast_docstring(name) or "").partition("\n")[0]
    return document.partition(". ")[0].rstrip(".").replace("``", "")


def ast_docstring(name: str) -> str | None:
    """Return the docstring of a module, without importing it."""
    return ast.get_docstring(parsed(name))


def draw_house() -> str:
    """Draw rooms as floors, the lowest at the bottom; a dot marks an import from the room of its column."""
    floors = rooms()[::-1]
    names = [floor.name for floor in floors]
    left, head, height, step = 516, 96, 30, 24
    parts = [text(4, 16, "Rooms with their modules. A dot: the room of this row imports from the room of this column.")]
    for column, name in enumerate(names):
        x = left + column * step + 12
        parts.append(text(x, head - 8, name, transform=f"rotate(-60 {x:g} {head - 8:g})", font_size=11))
        bottom = head + len(floors) * height
        parts.append(f'<line x1="{x:g}" x2="{x:g}" y1="{head}" y2="{bottom}" stroke="{LINE}"/>')
    for row, floor in enumerate(floors):
        y = head + row * height
        parts += [
            box(4, y + 2, left - 12, height - 4, ROOM),
            text(12, y + 19, floor.name, font_weight="bold"),
            text(136, y + 19, f"{floor.modules}", text_anchor="end"),
            text(146, y + 19, shortened(floor.purpose, 56), font_size=11),
        ]
        for column, name in enumerate(names):
            x = left + column * step + 12
            if name == floor.name:
                parts.append(f'<rect x="{x - 4:g}" y="{y + 11}" width="8" height="8" fill="{ROOM}"/>')
            elif name in floor.imports:
                parts.append(f'<circle cx="{x:g}" cy="{y + 15}" r="4" fill="{EDGE}"/>')
    return svg("The rooms of zroute and what each imports", head + len(floors) * height + 8, parts)


def shortened(words: str, most: int) -> str:
    """Return ``words``, cut at a space if they are longer than ``most`` characters."""
    return words if len(words) <= most else words[:most].rpartition(" ")[0].rstrip(",:;") + " …"


# -- the two paths ---------------------------------------------------------------------------------------


@attrs.frozen
class Step:
    """A called function: its name, its file, and the number of recorded functions that were active around it."""

    name: str
    file: str
    depth: int


class Recorder:
    """Record zroute's functions, and those of this file, as they are called."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Handle an event of sys.setprofile."""
        if event == "call" and is_shown(frame.f_code):
            self.steps.append(Step(named(frame.f_code), filed(frame.f_code), sum(map(is_shown, callers(frame)))))

    def of(self, call: Callable[[], object]) -> list[Step]:
        """The steps of one call."""
        self.steps.clear()
        sys.setprofile(self)
        try:
            call()
        finally:
            sys.setprofile(None)
        return outdented(self.steps)


def callers(frame: FrameType) -> Iterator[CodeType]:
    """The code that waits for this frame, the nearest first."""
    here = frame.f_back
    while here is not None:
        yield here.f_code
        here = here.f_back


def is_shown(code: CodeType) -> bool:
    """Return True for zroute's functions, including generated ones, and for the handler."""
    return code.co_filename.startswith((str(PACKAGE), "<zroute")) or code.co_name == "on_quote"


def named(code: CodeType) -> str:
    """Return the name of a function with its class or enclosing function; for the handler, only its own name."""
    parts = [part for part in code.co_qualname.split(".") if part != "<locals>"]
    return ".".join(parts[-1:] if code.co_filename == __file__ else parts[-2:])


def filed(code: CodeType) -> str:
    """Return the file name that the page shows."""
    if code.co_filename.startswith(str(PACKAGE)):
        return f"zroute/{Path(code.co_filename).relative_to(PACKAGE)}"
    return GENERATED if code.co_filename.startswith("<") else "your module"


def outdented(steps: Sequence[Step]) -> list[Step]:
    """Return ``steps`` with depths that begin at 0."""
    least = min((step.depth for step in steps), default=0)
    return [attrs.evolve(step, depth=step.depth - least) for step in steps]


@attrs.define
class Paths:
    """The functions that were called for one message on each path."""

    into: list[Step] = attrs.field(factory=list)
    out: list[Step] = attrs.field(factory=list)
    kept: list[Step] = attrs.field(factory=list)


def record_paths() -> Paths:
    """Run two apps over real sockets, and record the calls for one message on each path."""
    found, recorder = Paths(), Recorder()
    app, keeping = App(name="plain"), App(name="keeping")
    alerts = app.publisher("alerts.{level}", float)
    prices = keeping.publisher("prices.{symbol}", float, keep="last")

    @app.subscribe("alerts.{level}")
    def on_quote(price: float, level: str) -> None:
        if price == RECORDED:
            sys.setprofile(None)
            start = max(at for at, step in enumerate(recorder.steps) if step.name.endswith(".doRead"))
            found.into = outdented(recorder.steps[start:])
            stop("everything is recorded")

    @keeping.subscribe("prices.{symbol}")
    def on_price(price: float, symbol: str) -> None: ...

    @app.every(0.02, initial_delay=0.1)
    def feed() -> None:
        price = float(next(numbers))
        found.out = recorder.of(partial(alerts.publish, price, level="high"))
        found.kept = recorder.of(partial(prices.publish, price, symbol="ACME"))
        if price == RECORDED:
            recorder.steps.clear()
            sys.setprofile(recorder)  # until the handler is called

    numbers = count()
    code = run([app, keeping], seconds=30, log_level="error")
    if code or not (found.into and found.out and found.kept):
        raise SystemExit(f"nothing to draw: the apps ended with {code}")
    return found


def draw_path(title: str, paths: Sequence[tuple[str, Sequence[Step]]]) -> str:
    """Draw each path from top to bottom under its heading; a function is indented below its caller."""
    parts: list[str] = []
    y = 4.0
    for heading, steps in paths:
        parts.append(text(4, y + 14, heading, font_weight="bold"))
        y += 26
        for number, step in enumerate(steps):
            x = 4 + step.depth * 22
            colour = ROOM if is_counted(step) else EDGE
            if number:
                above = y - 6 - 28 * distance(steps[: number + 1])
                parts.append(f'<path d="M{x - 10:g} {above:g} V{y + 11:g} H{x:g}" fill="none" stroke="{LINE}"/>')
            parts += [box(x, y, 330, 22, colour), text(x + 8, y + 15, shortened(step.name, 48))]
            parts.append(text(600, y + 15, step.file))
            y += 28
        y += 12
    return svg(title, int(y), parts)


def distance(steps: Sequence[Step]) -> int:
    """Return the number of rows between the last of ``steps`` and its caller."""
    last = steps[-1].depth
    return next(rows for rows, step in enumerate(reversed(steps[:-1])) if step.depth < last)


def is_counted(step: Step) -> bool:
    """Return True for zroute's functions."""
    return step.file.startswith("zroute/") or step.file == GENERATED


def headed(name: str, steps: Sequence[Step]) -> str:
    """Return ``name`` with the cost of one message there, as counted by ``tests/test_house.py``."""
    counted = [step for step in steps if is_counted(step)]
    return f"{name}: {len(counted)} functions in {len({step.file for step in counted})} files"


def inbound(steps: Sequence[Step]) -> tuple[str, list[Step]]:
    """Return the path to the handler, below the reactor."""
    return headed("A message to a plain handler", steps), [Step("reactor", "Twisted", 0), *deeper(steps)]


def outbound(name: str, steps: Sequence[Step]) -> tuple[str, list[Step]]:
    """Return the path from the user's call; the first function in sockets/ passes the frame to ZeroMQ."""
    rows = [Step("your function", "your module", 0), *deeper(steps)]
    at = next(number for number, step in enumerate(rows) if step.file.startswith("zroute/sockets/"))
    rows.insert(at + 1, Step("socket.send", "ZeroMQ", rows[at].depth + 1))
    return headed(name, steps), rows


def deeper(steps: Sequence[Step]) -> list[Step]:
    """Return ``steps`` one level down."""
    return [attrs.evolve(step, depth=step.depth + 1) for step in steps]


# -- all of them -----------------------------------------------------------------------------------------


def draw() -> dict[str, str]:
    """Return the pictures by their file names."""
    paths = record_paths()
    return {
        "house.svg": draw_house(),
        "path-in.svg": draw_path("A message in: from the reactor to the handler", [inbound(paths.into)]),
        "path-out.svg": draw_path(
            "A message out: from publish() to the socket",
            [outbound("publish()", paths.out), outbound('publish() with keep="last"', paths.kept)],
        ),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for name, picture in draw().items():
        (folder / name).write_text(picture)
