"""Thumbnails, made in threads: handlers compute for as long as they like, and the app goes on around them.

zroute run --app-dir examples thumbnails

In a second terminal who looks at it, in a third two cameras:

zroute tail tcp://127.0.0.1:5747 'progress.*'
zroute run --app-dir examples thumbnails:cameras --for 5s
"""

import attrs

from zroute import App

PICTURES, THUMBNAILS = "tcp://127.0.0.1:5746", "tcp://127.0.0.1:5747"
SCALE = 8


@attrs.frozen
class Picture:
    """Shades of grey, a byte for each pixel, row by row."""

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
    """Runs in a thread: of one camera one after the other, of two cameras at a time.

    Eight more wait their turn; then the app reads no more until four of them are done.
    """
    small = bytearray()
    for top in range(0, picture.height, SCALE):
        small += bytes(shade(picture, left, top) for left in range(0, picture.width, SCALE))
        if top % (picture.height // 4) == 0:
            app.from_thread(progress.publish, Progress(100 * top // picture.height), camera=camera)
    return Picture(picture.width // SCALE, bytes(small))


def shade(picture: Picture, left: int, top: int) -> int:
    """The mean of a square."""
    rows = range(top * picture.width + left, (top + SCALE) * picture.width + left, picture.width)
    return sum(sum(picture.pixels[row : row + SCALE]) for row in rows) // SCALE**2


cameras = App(pub=PICTURES)
pictures = cameras.publisher("pictures.{camera}", Picture)


@cameras.every(0.2)
def take() -> None:
    for camera, grey in (("door", 40), ("yard", 200)):
        pictures.publish(Picture(640, bytes([grey]) * 640 * 480), camera=camera)
