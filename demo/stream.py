"""Training examples without end: postcards drawn by worker processes, kept on the device, met several times.

Drawing is the slow part (a core draws some fifty a second, the card learns from thousands), so every picture
is kept in a ring on the device and sampled until newer ones replace it. A batch holds one patch grid only:
equal shapes need no padding. Knows nothing of the model.
"""

from __future__ import annotations

import contextlib
import io
import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast
from transformers.models.glm4v.image_processing_pil_glm4v import smart_resize

from demo.blueprint import MAX_SIDE, MERGE, MIN_AREA, PATCH
from demo.captions import make_caption
from demo.paint import paint
from demo.scene import Scene, compose

#: Tokens kept of each answer, its stop token included (the longest have 58 and 80); longer ones are cut without a stop.
CAPTION_TOKENS, TEXT_TOKENS = 60, 84
#: Characters of a picture that are told to the letter head.
LETTERS = 72
#: Three of four pictures are drawn at this long side, not at their own of up to 1280, and scaled from there: faster.
DRAWN_SIDE = 504
#: Pictures in one parcel from a worker.
PARCEL = 16


class Parcel(NamedTuple):
    """`PARCEL` pictures of one size: pixels uint8 (n, height, width, 3), answers int16 (n, tokens), -1 at the end.

    letters int16 (n, LETTERS, 2): which patch, in the vision tower's order, holds the middle of which character.
    """

    pixels: torch.Tensor
    captions: torch.Tensor
    texts: torch.Tensor
    letters: torch.Tensor


def to_model_size(image: Image.Image) -> Image.Image:
    """Scale as the pipeline does (long side down to `MAX_SIDE`), then as the image processor does."""
    scaled = image.convert("RGB")
    scaled.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0)
    height, width = smart_resize(
        2,
        scaled.height,
        scaled.width,
        temporal_factor=2,
        factor=PATCH * MERGE,
        min_pixels=2 * MIN_AREA,
        max_pixels=2 * MAX_SIDE * MAX_SIDE,
    )
    return scaled.resize((width, height), Image.Resampling.BICUBIC)


def recompress(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Half of the pictures pass through JPEG, as about half of the drop's have."""
    if generator.random() < 0.5:
        return image
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(generator.integers(60, 96)))
    return Image.open(buffer).convert("RGB")


def letters_in_patches(scene: Scene, width: int, height: int) -> np.ndarray:
    """int16 (LETTERS, 2), -1 at the end: patch and code of each ASCII character of a width x height picture."""
    found = np.full((LETTERS, 2), -1, dtype=np.int16)
    places = [(ord(c), int(y * height / PATCH), int(x * width / PATCH)) for c, x, y in scene.letters if ord(c) < 128]
    for number, (code, row, column) in enumerate(places[:LETTERS]):
        cell = row // MERGE * (width // PATCH // MERGE) + column // MERGE
        found[number] = cell * MERGE**2 + row % MERGE * MERGE + column % MERGE, code
    return found


class Drawing(IterableDataset):
    """Worker `w` of `n` draws pictures first+w, first+w+n, … of `seed`, and hands them on by size, in parcels."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop_id: int, *, seed: int, first: int) -> None:
        self.tokenizer, self.stop_id, self.seed, self.first = tokenizer, stop_id, seed, first

    def _ids(self, answer: str, length: int) -> np.ndarray:
        row = np.full(length, -1, dtype=np.int16)
        ids = [*self.tokenizer(answer, add_special_tokens=False).input_ids, self.stop_id][:length]
        row[: len(ids)] = ids
        return row

    def __iter__(self) -> Iterator[Parcel]:
        worker = get_worker_info()
        index, step = (self.first + worker.id, worker.num_workers) if worker else (self.first, 1)
        waiting: dict[tuple[int, int], list[tuple[np.ndarray, ...]]] = {}
        while True:
            scene = compose(self.seed, index)
            image = paint(scene, DRAWN_SIDE if index % 4 else None)
            image = to_model_size(recompress(image, np.random.default_rng((self.seed, index, 7))))
            index += step
            row = (
                np.asarray(image),
                self._ids(make_caption(scene.facts, scene.template), CAPTION_TOKENS),
                self._ids(scene.text, TEXT_TOKENS),
                letters_in_patches(scene, *image.size),
            )
            rows = waiting.setdefault(image.size, [])
            rows.append(row)
            if len(rows) == PARCEL:
                del waiting[image.size]
                yield Parcel(*(torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)))


class Ring:
    """The last `capacity` pictures of one size, on the device."""

    def __init__(self, parcel: Parcel, capacity: int, device: torch.device) -> None:
        self.columns = [
            torch.empty((capacity, *column.shape[1:]), dtype=column.dtype, device=device) for column in parcel
        ]
        self.capacity, self.seen = capacity, 0

    def add(self, parcel: Parcel) -> None:
        start = self.seen % self.capacity
        for ring, column in zip(self.columns, parcel, strict=True):
            ring[start : start + PARCEL].copy_(column, non_blocking=True)
        self.seen += PARCEL

    def sample(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        device = self.columns[0].device
        rows = torch.randint(min(self.seen, self.capacity), (count,), generator=generator, device=device)
        return tuple(column[rows] for column in self.columns)


class Stream:
    """Batches of one size each, sizes as often as they are drawn. Drawing goes on in the background until `close`.

    `drawn` counts pictures. `capacity` is a multiple of `PARCEL`: pictures kept of each size. Only the caller's thread
    touches the device: a copy queued from another thread would wait for every kernel before it, and the caller for it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        stop_id: int,
        *,
        seed: int,
        first: int,
        workers: int,
        capacity: int,
        device: torch.device,
    ) -> None:
        self._rings: dict[tuple[int, ...], Ring] = {}
        self._capacity, self._device, self.drawn = capacity, device, 0
        self._generator = torch.Generator(device=device).manual_seed(seed + first)
        self._choice = np.random.default_rng((seed, first))
        self._waiting: queue.Queue[Parcel | Exception] = queue.Queue(maxsize=512)
        loader = DataLoader(
            Drawing(tokenizer, stop_id, seed=seed, first=first),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=device.type == "cuda",
            # Workers must not inherit the device's context.
            multiprocessing_context="forkserver" if workers else None,
        )
        self._closing = threading.Event()
        self._collector = threading.Thread(target=self._collect, args=(loader,), daemon=True)
        self._collector.start()

    def _collect(self, loader: DataLoader) -> None:
        try:
            for parcel in loader:
                self._waiting.put(Parcel(*parcel))
                if self._closing.is_set():
                    return  # the loader's iterator ends with this frame: first its pinning thread, then its workers
        except Exception as failure:  # noqa: BLE001 - raised again by `fill`, in the training thread
            self._waiting.put(failure)

    def fill(self, parcels: int, *, wait: bool = False) -> None:
        """Take over at most `parcels` parcels that are drawn; with `wait`, be patient for each."""
        for _ in range(parcels):
            try:
                parcel = self._waiting.get(block=wait)
            except queue.Empty:
                return
            if isinstance(parcel, Exception):
                raise RuntimeError("drawing postcards failed") from parcel
            size = tuple(parcel.pixels.shape[1:3])
            if size not in self._rings:
                self._rings[size] = Ring(parcel, self._capacity, self._device)
            self._rings[size].add(parcel)
            self.drawn += PARCEL

    def batch(self, count: int) -> tuple[torch.Tensor, ...]:
        """The columns of a `Parcel`, `count` rows of one size. Raises `RuntimeError` when drawing has failed."""
        self.fill(8)
        # A size seen too seldom would be learnt by heart.
        while not (rings := [ring for ring in self._rings.values() if ring.seen >= min(count, 64)]):
            self.fill(1, wait=True)
        weights = np.array([ring.seen for ring in rings], dtype=float)
        return rings[self._choice.choice(len(rings), p=weights / weights.sum())].sample(count, self._generator)

    def close(self) -> None:
        """End the drawing and its processes, and wait until they are gone. May be called again.

        Without it they would be cut off at the interpreter's end, in the middle of handing a parcel on.
        """
        self._closing.set()
        while self._collector.is_alive():
            with contextlib.suppress(queue.Empty):  # room for a parcel that the collector holds
                self._waiting.get(timeout=0.1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
