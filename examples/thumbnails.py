"""Compute thumbnails in threads, so that the app does not block.

zroute run --app-dir examples thumbnails

In a second terminal, show the progress. In a third, run two cameras:

zroute tail tcp://127.0.0.1:5747 'progress.*'
zroute run --app-dir examples thumbnails:cameras --for 5s
"""

import attrs

from zroute import App

PICTURES, THUMBNAILS = "tcp://127.0.0.1:5746", "tcp://127.0.0.1:5747"
SCALE = 8


@attrs.frozen
class Picture:
    """A picture in shades of grey, with one byte per pixel, row by row."""

    width: int
    pixels: bytes

    @property
    def height(self) -> int:
        return len(self.pixels) // self.width


@attrs.frozen
class Progress:
    percent: int


app = App(sub=PICTURES, pub=THUMBNAILS)
progress = app.publisher("progress.{camera}", Progress)


@app.publisher("thumbnails.{camera}")
@app.subscribe("pictures.{camera}", thread=True, max_in_flight=2, queue=8)
def shrink(picture: Picture, camera: str) -> Picture:
    """Make a thumbnail, in a thread.

    Pictures of one camera are handled in order, and pictures of different cameras at the same time. Up to eight more
    pictures can wait. When the queue is full, the app stops reading until four of them are handled.
    """
    small = bytearray()
    for top in range(0, picture.height, SCALE):
        small += bytes(shade(picture, left, top) for left in range(0, picture.width, SCALE))
        if top % (picture.height // 4) == 0:
            app.from_thread(progress.publish, Progress(100 * top // picture.height), camera=camera)
    return Picture(picture.width // SCALE, bytes(small))


def shade(picture: Picture, left: int, top: int) -> int:
    """Return the mean shade of a square."""
    rows = range(top * picture.width + left, (top + SCALE) * picture.width + left, picture.width)
    return sum(sum(picture.pixels[row : row + SCALE]) for row in rows) // SCALE**2


cameras = App(pub=PICTURES)
pictures = cameras.publisher("pictures.{camera}", Picture)


@cameras.every(0.2)
def take() -> None:
    for camera, grey in (("door", 40), ("yard", 200)):
        pictures.publish(Picture(640, bytes([grey]) * 640 * 480), camera=camera)
