"""Looking at demonstrations: contact sheets and videos."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sb3_tgrpo.envs.demos.files import Demo
from sb3_tgrpo.files import atomic_path

_FPS = 20
_GAP = 2


def contact_sheet(demos: Sequence[Demo], rows: int = 8, columns: int = 8, width: int = 128) -> np.ndarray:
    """
    Pictures at equal distances in time, one row per demonstration, upright.

    :param demos: Demonstrations to show.
    :param rows: Largest number of demonstrations shown, from the first.
    :param columns: Pictures per demonstration, the first and the last included.
    :param width: Width of a picture, pixels; larger ones are thinned out.
    :return: Picture, uint8 (height, width, 3).
    :raises ValueError: If there are no demonstrations, or one has no pictures.
    """
    if not demos:
        raise ValueError("demos is empty: there is nothing to show.")
    lines = []
    for demo in demos[:rows]:
        images = demo.images()
        chosen = images[np.linspace(0, len(images) - 1, columns).round().astype(int)]
        step = max(1, -(-chosen.shape[2] // width))
        pictures = chosen[:, ::-1][:, ::step, ::step]
        padded = np.pad(pictures, ((0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
        lines.append(np.concatenate(list(padded), axis=1))
    return np.concatenate(lines, axis=0)


def write_contact_sheet(demos: Sequence[Demo], path: str | os.PathLike[str], rows: int = 8, columns: int = 8) -> None:
    """
    Write :func:`contact_sheet` to a picture file, whose suffix decides the format, such as ``.png``.

    :raises ValueError: If there are no demonstrations, one has no pictures, or the suffix is of no format.
    """
    imageio = _imageio()
    sheet = contact_sheet(demos, rows, columns)
    with atomic_path(path) as unfinished:
        try:
            imageio.imwrite(unfinished, sheet)
        except ValueError as error:
            raise _unknown_format(path, "a picture", ".png") from error


def write_video(demos: Sequence[Demo], path: str | os.PathLike[str], fps: int = _FPS) -> None:
    """
    Write demonstrations one after the other as a video, upright, in real time by default.

    :raises ValueError: If there are no demonstrations, or one has no pictures.
    """
    if not demos:
        raise ValueError("demos is empty: there is nothing to show.")
    write_pictures((picture for demo in demos for picture in demo.images()[:, ::-1]), path, fps)


def write_pictures(pictures: Iterable[np.ndarray], path: str | os.PathLike[str], fps: int = _FPS) -> None:
    """
    Write pictures, uint8 (height, width, 3) each, as a video; the file appears when it is complete.

    :raises ValueError: If the suffix is of no format.
    """
    imageio = _imageio()
    with atomic_path(path) as unfinished:
        try:
            opened = imageio.get_writer(unfinished, fps=fps, macro_block_size=1, quality=7)
        except ValueError as error:
            raise _unknown_format(path, "a video", ".mp4") from error
        with opened as writer:
            for picture in pictures:
                height, width = (size - size % 2 for size in picture.shape[:2])  # the codec wants even sizes
                writer.append_data(np.ascontiguousarray(picture[:height, :width]))


def read_pictures(path: str | os.PathLike[str]) -> list[np.ndarray]:
    """The pictures, uint8 (height, width, 3) each, of a video that :func:`write_pictures` wrote."""
    with _imageio().get_reader(Path(path)) as reader:
        return [np.asarray(picture) for picture in reader]


def _unknown_format(path: str | os.PathLike[str], what: str, suffix: str) -> ValueError:
    return ValueError(f"{os.fspath(path)}: there is no format for {what} of this suffix; name it with {suffix}.")


def _imageio():  # type: ignore[no-untyped-def]
    try:
        import imageio.v2 as imageio
    except ImportError as error:
        raise ImportError('Pictures and videos need imageio: pip install "sb3-tgrpo[libero]".') from error
    return imageio
