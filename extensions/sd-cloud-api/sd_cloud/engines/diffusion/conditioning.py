"""Prompts as the tensors a U-Net is conditioned on, step by step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sd_cloud.engines.diffusion.embeddings import Embedding, EmbeddingShelf
from sd_cloud.engines.diffusion.model import Model
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.engines.diffusion.prompt_chunks import EMPTY, Chunk, chunks_of, one_chunk
from sd_cloud.engines.diffusion.prompt_grammar import Timeline, schedule_prompt, split_and
from sd_cloud.engines.diffusion.sd3 import Sd3Model, uses_t5
from sd_cloud.engines.diffusion.sd3_conditioning import encode_sd3
from sd_cloud.engines.diffusion.text_encoders import Placed, TextEncoder
from sd_cloud.engines.diffusion.time_embedding import sinusoid
from sd_cloud.engines.diffusion.tokenizer import clip_tokenizer
from sd_cloud.errors import BadRequest

CACHED_TEXTS = 128


@dataclass(frozen=True)
class Cond:
    """``cross``: [tokens, width] for the cross attention; ``vector``: [width] beside it (SDXL)."""

    cross: Tensor
    vector: Tensor | None = None


Schedule = list[tuple[int, Cond]]
"""What holds up to which step, inclusive, counted from the pass's first call as 0."""


@dataclass(frozen=True)
class Weighted:
    schedule: Schedule
    weight: float


@dataclass(frozen=True)
class Size:
    width: int
    height: int


@dataclass(frozen=True)
class Encoded:
    """All of a batch: for each picture its parts (joined by AND), and its negative prompt."""

    positive: list[list[Weighted]]
    negative: list[Schedule]


def at_step(schedule: Schedule, step: int) -> Cond:
    return next((cond for end, cond in schedule if step <= end), schedule[0][1])


class Conditioner:
    """Encodes prompts with one model as it is now (its LoRAs merged).

    ``marks`` collects what the infotext has to say about the prompts (``TI hashes``, ``Emphasis``).
    """

    def __init__(
        self,
        model: Model,
        options: Options,
        embeddings: EmbeddingShelf,
        cache: TextCache,
        lora_state: Hashable,
    ) -> None:
        self.model = model
        self.options = options
        self.embeddings = embeddings
        self.cache = cache
        self.lora_state = lora_state
        self.marks: dict[str, str] = {}

    def encode(
        self, prompts: Sequence[str], negatives: Sequence[str], size: Size, timeline: Timeline
    ) -> Encoded:
        known: dict[str, Schedule] = {}
        # The webui encodes the negative prompts first; the order shows in ``TI hashes``.
        negative_side = [self._schedule(text, size, timeline, negative=True) for text in negatives]
        positive = []
        for prompt in prompts:
            parts = []
            for text, weight in split_and(prompt):
                if text not in known:
                    known[text] = self._schedule(text, size, timeline, negative=False)
                parts.append(Weighted(known[text], weight))
            positive.append(parts)
        return Encoded(positive, negative_side)

    def differs_from_new(self, prompts: Sequence[str], negatives: Sequence[str], timeline: Timeline) -> bool:
        """Whether ``use_old_scheduling`` makes a difference to these prompts."""
        new = Timeline(timeline.first_steps, timeline.hires_steps)
        return any(
            schedule_prompt(text, timeline) != schedule_prompt(text, new) for text in (*prompts, *negatives)
        )

    def encode_plainly(self, prompts: Sequence[str], negatives: Sequence[str], size: Size) -> Encoded:
        """The same prompts at every step: ``AND`` and ``[from:to:when]`` are read as text."""

        def schedule(text: str, *, negative: bool) -> Schedule:
            return [(0, self._encode_texts([text], size, negative=negative)[0])]

        return Encoded(
            [[Weighted(schedule(text, negative=False), 1.0)] for text in prompts],
            [schedule(text, negative=True) for text in negatives],
        )

    def empty(self) -> Tensor:
        """``cross`` of the empty prompt, for padding."""
        return self._encode_texts([""], Size(0, 0), negative=False)[0].cross

    def _schedule(self, text: str, size: Size, timeline: Timeline, *, negative: bool) -> Schedule:
        steps = schedule_prompt(text, timeline)
        conds = self._encode_texts([part for _, part in steps], size, negative=negative)
        return [(end, cond) for (end, _), cond in zip(steps, conds, strict=True)]

    def _encode_texts(self, texts: list[str], size: Size, *, negative: bool) -> list[Cond]:
        """Texts of one prompt's schedule, encoded together (emphasis takes its mean over them all)."""
        batch = self._chunk(texts)
        found = {one.embedding for row in batch for chunk in row for one in chunk.places}
        used = [one for one in found if isinstance(one, Embedding)]
        self._mark(texts, batch)
        key = (
            self.model.file,
            id(self.model),
            self.lora_state,
            tuple(texts),
            tuple(sorted((one.name, one.changed_ns) for one in used)),
            self._relevant_options(),
            (size.width, size.height, negative) if self.model.is_sdxl else None,
        )
        cached = self.cache.get(key)
        if cached is None:
            cached = self._run(texts, batch, size, negative=negative)
            self.cache.put(key, cached)
        return cached

    def _relevant_options(self) -> tuple[Hashable, ...]:
        names = (
            "CLIP_stop_at_last_layers",
            "emphasis",
            "use_old_emphasis_implementation",
            "comma_padding_backtrack",
            "sdxl_clip_l_skip",
            "sdxl_crop_top",
            "sdxl_crop_left",
            "sdxl_refiner_low_aesthetic_score",
            "sdxl_refiner_high_aesthetic_score",
        )
        return (*(self.options.get(name) for name in names), uses_t5(self.options))

    def _chunk(self, texts: Sequence[str]) -> list[list[Chunk]]:
        first = self.model.text[0]
        known: dict[str, list[Chunk]] = {}
        emphasis = self.options.text("emphasis") != "None"
        if self.options.flag("use_old_emphasis_implementation"):
            if self.model.layout.family != "sd1":
                raise BadRequest(
                    "is for SD 1 checkpoints: OpenCLIP has no such implementation",
                    field="override_settings.use_old_emphasis_implementation",
                )
            gains = clip_tokenizer().bracket_gains if emphasis else {}
            lookup = self.embeddings.lookup(self.model)
            return [one_chunk(text, first.tokenize, lookup=lookup, gains=gains) for text in texts]
        for text in texts:
            if text not in known:
                known[text] = chunks_of(
                    text,
                    first.tokenize,
                    lookup=self.embeddings.lookup(self.model),
                    # The webui knows no comma of SD 3: words stay where they are.
                    comma=None if self.model.layout.family == "sd3" else clip_tokenizer().comma,
                    comma_backtrack=self.options.whole("comma_padding_backtrack"),
                    emphasis=emphasis,
                )
        most = max(len(chunks) for chunks in known.values())
        return [known[text] + [EMPTY] * (most - len(known[text])) for text in texts]

    def _mark(self, texts: Sequence[str], batch: Sequence[Sequence[Chunk]]) -> None:
        if self.options.flag("use_old_emphasis_implementation"):
            return
        emphasis = self.options.text("emphasis")
        if emphasis != "Original" and any("(" in text or "[" in text for text in texts):
            self.marks["Emphasis"] = emphasis
        if not self.options.flag("textual_inversion_add_hashes_to_infotext"):
            return
        with_lora = self.options.flag("lora_bundled_ti_to_infotext")

        def told(one: Embedding) -> str:
            return "" if one.bundled and not with_lora else one.short_hash

        # SD 3's two encoders are one to the webui.
        for _ in range(1 if self.model.layout.family == "sd3" else len(self.model.text)):
            used: dict[str, Embedding] = {}
            for number in range(len(batch[0])):
                for row in batch:
                    for place in row[number].places:
                        if isinstance(place.embedding, Embedding):
                            used[place.embedding.name] = place.embedding
            hashes = [
                f"{one.name.replace(':', '').replace(',', '')}: {told(one)}"
                for one in used.values()
                if one.short_hash
            ]
            if hashes:
                before = self.marks.get("TI hashes")
                self.marks["TI hashes"] = ", ".join([*hashes, before] if before else hashes)

    @torch.no_grad()
    def _run(
        self, texts: Sequence[str], batch: Sequence[Sequence[Chunk]], size: Size, *, negative: bool
    ) -> list[Cond]:
        if isinstance(self.model, Sd3Model):
            emphasis = self.options.text("emphasis") != "None"
            cross, pools = encode_sd3(
                self.model,
                texts,
                batch,
                self._prepared,
                self._emphasised,
                emphasis=emphasis,
                with_t5=uses_t5(self.options),
            )
            return [Cond(row, own) for row, own in zip(cross, pools, strict=True)]
        crosses: list[Tensor] = []
        pooled: Tensor | None = None
        for encoder in self.model.text:
            pieces = []
            for number in range(len(batch[0])):
                states, pool = self._chunk_states(encoder, [row[number] for row in batch])
                pieces.append(states)
                if number == 0 and pool is not None:
                    pooled = pool
            crosses.append(torch.cat(pieces, dim=1))
        cross = torch.cat(crosses, dim=2)
        if not self.model.is_sdxl:
            return [Cond(row) for row in cross]
        assert pooled is not None
        if negative and all(text == "" for text in texts):
            cross, pooled = torch.zeros_like(cross), torch.zeros_like(pooled)
        vector = torch.cat([pooled, self._sizes(size, negative=negative).expand(len(texts), -1)], dim=1)
        return [Cond(row, own) for row, own in zip(cross, vector, strict=True)]

    def _chunk_states(self, encoder: TextEncoder, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor | None]:
        ids, placed = self._prepared(encoder, chunks)
        states, pooled = self._layers(encoder, ids, placed)
        weights = torch.tensor([chunk.weights for chunk in chunks], device=states.device, dtype=states.dtype)
        return self._emphasised(states, weights), pooled

    def _prepared(self, encoder: TextEncoder, chunks: Sequence[Chunk]) -> tuple[Tensor, list[Placed]]:
        """Token ids [N, 77] for one encoder, and the textual inversions among them."""
        self.model.bring(encoder.model)
        device = encoder.model.embeddings.token_embedding.weight.device
        ids = torch.tensor([_padded(chunk.tokens, encoder.pad) for chunk in chunks], device=device)
        placed = [
            Placed(row, place.offset, place.embedding.vectors_for(encoder.kind))
            for row, chunk in enumerate(chunks)
            for place in chunk.places
            if isinstance(place.embedding, Embedding)
        ]
        return ids, placed

    def _layers(
        self, encoder: TextEncoder, ids: Tensor, placed: Sequence[Placed]
    ) -> tuple[Tensor, Tensor | None]:
        """The hidden state that the family takes from this encoder, and the pooled one."""
        skip = self.options.whole("CLIP_stop_at_last_layers")
        family = self.model.layout.family
        if family == "sd1":
            return encoder.normed(encoder.hidden(ids, encoder.layers + 1 - max(skip, 1), placed)), None
        if family == "sd2":
            return encoder.normed(encoder.hidden(ids, encoder.layers - 1, placed)), None
        if encoder.kind == "clip_l":
            layer = (
                encoder.layers + 1 - skip
                if self.options.flag("sdxl_clip_l_skip")
                else self.model.layout.clip_layer
            )
            return encoder.hidden(ids, layer, placed), None
        penultimate = encoder.hidden(ids, encoder.layers - 1, placed)
        last = encoder.continue_from(penultimate, encoder.layers - 1, encoder.layers)
        return penultimate, encoder.pooled(ids, last)

    def _emphasised(self, states: Tensor, weights: Tensor) -> Tensor:
        """Weigh each token; ``Original`` then restores the mean over the batch."""
        emphasis = self.options.text("emphasis")
        if emphasis in ("None", "Ignore"):
            return states
        weighed = states * weights[..., None]
        if emphasis == "No norm":
            return weighed
        return weighed * (states.mean() / weighed.mean())

    def _sizes(self, size: Size, *, negative: bool) -> Tensor:
        """SDXL's other conditions (Podell et al. 2023): sizes as (height, width), 256 numbers each."""
        options = self.options
        crop = [options.number("sdxl_crop_top"), options.number("sdxl_crop_left")]
        height, width = float(size.height or 1024), float(size.width or 1024)
        if self.model.layout.family == "sdxl-refiner":
            which = "low" if negative else "high"
            values = [height, width, *crop, options.number(f"sdxl_refiner_{which}_aesthetic_score")]
        else:
            values = [height, width, *crop, height, width]
        weight = self.model.text[0].model.embeddings.token_embedding.weight
        numbers = torch.tensor(values, device=self.model.placement.device)
        return sinusoid(numbers, 256).to(weight.dtype).reshape(1, -1)


def _padded(tokens: Sequence[int], pad: int) -> list[int]:
    """After the first end token, OpenCLIP is padded with zeros."""
    end = tokens.index(tokens[-1])
    return [*tokens[: end + 1], *[pad] * (len(tokens) - end - 1)]


class TextCache:
    """Encoded texts, the most recently used kept."""

    def __init__(self, limit: int = CACHED_TEXTS) -> None:
        self._limit = limit
        self._entries: OrderedDict[Hashable, list[Cond]] = OrderedDict()

    def get(self, key: Hashable) -> list[Cond] | None:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: Hashable, conds: list[Cond]) -> None:
        self._entries[key] = conds
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def clear(self) -> None:
        self._entries.clear()
