"""Words for pictures: BLIP's sentence, CLIP's lines, DeepDanbooru's tags, with small random networks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion.interrogate.files import weights_of
from sd_cloud.errors import Cancelled, CheckpointBroken, NotImplementedHere
from sd_cloud.job import Job
from sd_cloud.settings import Settings, settings_below
from tests.engines.diffusion.test_engine import encoded

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.engine

WIDTH = 64


class Attention(torch.nn.Module):
    """OpenAI's names of a layer's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.in_proj_weight = torch.nn.Parameter(torch.randn(3 * WIDTH, WIDTH) * 0.1)
        self.in_proj_bias = torch.nn.Parameter(torch.randn(3 * WIDTH) * 0.1)
        self.out_proj = torch.nn.Linear(WIDTH, WIDTH)


def layer() -> Any:
    block = torch.nn.Module()
    block.ln_1, block.ln_2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
    block.attn = Attention()
    block.mlp = torch.nn.Module()
    block.mlp.c_fc, block.mlp.c_proj = torch.nn.Linear(WIDTH, 128), torch.nn.Linear(128, WIDTH)
    return block


def transformer() -> Any:
    found = torch.nn.Module()
    found.resblocks = torch.nn.ModuleList([layer()])
    return found


class Clip(torch.nn.Module):
    """A CLIP with the names of OpenAI's file. What it computes does not matter to who reads the file."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = torch.nn.Module()
        self.visual.class_embedding = torch.nn.Parameter(torch.randn(WIDTH))
        self.visual.positional_embedding = torch.nn.Parameter(torch.randn(5, WIDTH))
        self.visual.proj = torch.nn.Parameter(torch.randn(WIDTH, 32))
        self.visual.conv1 = torch.nn.Conv2d(3, WIDTH, 14, 14, bias=False)
        self.visual.ln_pre, self.visual.ln_post = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.visual.transformer = transformer()
        self.transformer = transformer()
        self.token_embedding = torch.nn.Embedding(49408, WIDTH)
        self.positional_embedding = torch.nn.Parameter(torch.randn(77, WIDTH))
        self.ln_final = torch.nn.LayerNorm(WIDTH)
        self.text_projection = torch.nn.Parameter(torch.randn(WIDTH, 32))
        self.logit_scale = torch.nn.Parameter(torch.ones([]))

    def forward(self, x: Any) -> Any:
        return x * self.logit_scale


def save_clip(file: Path) -> dict[str, Any]:
    torch.manual_seed(2)
    clip = Clip()
    torch.jit.save(torch.jit.trace(clip, torch.zeros(1)), file)
    return dict(clip.state_dict())


def save_blip(file: Path) -> None:
    """In the file's own names, from transformers' by the way back."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    half = {
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
    }
    vision = {**half, "image_size": 32, "patch_size": 16}
    text = {**half, "encoder_hidden_size": WIDTH, "vocab_size": 30524}
    torch.manual_seed(3)
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    names = (
        ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
        ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
        ("vision_model.embeddings.patch_embedding.", "visual_encoder.patch_embed.proj."),
        ("vision_model.post_layernorm.", "visual_encoder.norm."),
        ("vision_model.encoder.layers.", "visual_encoder.blocks."),
        (".self_attn.projection.", ".attn.proj."),
        (".self_attn.", ".attn."),
        (".layer_norm", ".norm"),
    )
    state = {"text_decoder.bert.embeddings.position_ids": torch.arange(512)[None]}
    for key, tensor in model.state_dict().items():
        for new, old in names if key.startswith("vision_model") else ():
            key = key.replace(new, old)
        state[key] = tensor + torch.randn_like(tensor) * 0.05
    torch.save({"model": state}, file)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    found = settings_below(tmp_path_factory.mktemp("data"))
    for folder in (found.folders.blip[0], found.folders.clip[0], found.data_dir / "interrogate"):
        folder.mkdir(parents=True)
    save_blip(found.folders.blip[0] / "model_base_caption_capfilt_large.pth")
    save_clip(found.folders.clip[0] / "ViT-L-14.pt")
    (found.data_dir / "interrogate" / "artists.txt").write_text("by monet\nby a child\n")
    (found.data_dir / "interrogate" / "flavors.top2.txt").write_text("red\ngreen\nblue\n")
    return found


@pytest.fixture(scope="module")
def worker(settings: Settings) -> Iterator[Any]:
    from sd_cloud.engines.diffusion.engine import create

    yield create(settings)


def asked(model: str = "clip", **options: Any) -> Job:
    image = Image.linear_gradient("L").convert("RGB").resize((40, 30))
    short = {"interrogate_clip_min_length": 6, "interrogate_clip_max_length": 8}
    return Job("interrogate", {"image": encoded(image), "model": model}, options={**short, **options})


def caption(worker: Any, job: Job) -> str:
    outcome = worker.run(job, lambda progress: None, Control())
    assert outcome.pictures == ()
    return str(outcome.info["caption"])


def test_a_caption_is_a_sentence_and_the_best_lines_of_each_list(worker: Any) -> None:
    plain = caption(worker, asked())
    sentence, artist, first, second = plain.rsplit(", ", 3)
    assert sentence
    assert artist in ("by monet", "by a child")
    assert {first, second} < {"red", "green", "blue"}
    assert caption(worker, asked()) == plain


def test_the_options_of_interrogation_count(worker: Any) -> None:
    ranked = caption(
        worker, asked(interrogate_return_ranks=True, interrogate_clip_skip_categories=["artists"])
    )
    assert ranked.count(":") == 2
    assert "by " not in ranked.partition("(")[2]
    limited = caption(worker, asked(interrogate_clip_dict_limit=1))
    assert limited.endswith(", by monet, red")
    assert caption(worker, asked(interrogate_clip_num_beams=3))


def test_a_cancelled_interrogation_ends(worker: Any) -> None:
    control = Control()
    control.ask("cancel")
    with pytest.raises(Cancelled):
        worker.run(asked(), lambda progress: None, control)


def test_what_is_missing_is_named_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    bare = settings_below(tmp_path)
    with pytest.raises(NotImplementedHere, match=r"model: .*model_base_caption_capfilt_large\.pth in .*BLIP"):
        weights_of("clip", bare)
    with pytest.raises(NotImplementedHere, match=r"model-resnet_custom_v3\.pt in .*torch_deepdanbooru"):
        weights_of("deepdanbooru", bare)
    bare.folders.blip[0].mkdir(parents=True)
    (bare.folders.blip[0] / "another.pth").touch()
    with pytest.raises(NotImplementedHere, match=r"ViT-L-14\.pt in .*CLIP or .*home/\.cache/clip"):
        weights_of("clip", bare)
    (tmp_path / "home/.cache/clip").mkdir(parents=True)
    (tmp_path / "home/.cache/clip/ViT-L-14.pt").touch()
    assert weights_of("clip", bare).blip == bare.folders.blip[0] / "another.pth"


def test_a_scripted_archive_gives_its_tensors_and_runs_nothing(tmp_path: Path) -> None:
    from sd_cloud.engines.diffusion.interrogate.scripted import is_scripted, read_scripted_tensors

    state = save_clip(tmp_path / "clip.pt")
    assert is_scripted(tmp_path / "clip.pt")
    found = read_scripted_tensors(tmp_path / "clip.pt")
    assert set(found) == set(state)
    assert all(torch.equal(found[key], state[key]) for key in state)
    torch.save(state, tmp_path / "plain.pt")
    assert not is_scripted(tmp_path / "plain.pt")


def test_an_archive_that_names_something_else_is_refused(tmp_path: Path) -> None:
    import pickle
    import zipfile

    from sd_cloud.engines.diffusion.interrogate.scripted import read_scripted_tensors

    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(pathlike := Path))
        archive.writestr("x/constants.pkl", b"")
    assert pathlike is Path
    with pytest.raises(
        CheckpointBroken, match=r"bad\.pt is no TorchScript archive of tensors: it names pathlib"
    ):
        read_scripted_tensors(tmp_path / "bad.pt")


def test_deepdanbooru_has_the_published_files_layers() -> None:
    from sd_cloud.engines.diffusion.interrogate.deepbooru import DeepDanbooru

    with torch.device("meta"):
        shapes = {key: tuple(one.shape) for key, one in DeepDanbooru().state_dict().items()}
    assert len(shapes) == 2 * 178 + 1
    assert shapes["n_Conv_0.weight"] == (64, 3, 7, 7)
    assert shapes["n_Conv_97.weight"] == (256, 1024, 1, 1)
    assert shapes["n_Conv_100.weight"] == (1024, 1024, 1, 1)
    assert shapes["n_Conv_158.weight"] == (2048, 1024, 1, 1)
    assert shapes["n_Conv_178.weight"] == (9176, 4096, 1, 1)


def test_deepdanbooru_answers_for_each_tag() -> None:
    from sd_cloud.engines.diffusion.interrogate.deepbooru import DeepDanbooru, Stage, Tagger

    small = DeepDanbooru((Stage(1, 4, 8), Stage(2, 4, 8, side_last=True)), tags=3)
    found = Tagger(small, ("a", "b", "c")).probabilities(Image.new("RGB", (30, 60), "teal"))
    assert len(found) == 3
    assert all(0 < share < 1 for share in found)


def test_tags_are_written_as_the_options_say() -> None:
    from sd_cloud.engines.diffusion.interrogate.deepbooru import described
    from sd_cloud.engines.diffusion.options import Options

    tags, shares = ("smile_(x)", "rating:safe", "long_hair", "1girl"), (0.7, 0.9, 0.8, 0.2)

    def said(**options: Any) -> str:
        return described(shares, tags, Options(asked(**options)))

    assert said() == r"long hair, smile \(x\)"
    assert said(deepbooru_use_spaces=False, deepbooru_escape=False) == "long_hair, smile_(x)"
    assert said(deepbooru_sort_alpha=False, interrogate_return_ranks=True).startswith("(long hair:0.800)")
    assert said(deepbooru_filter_tags="long hair, other") == r"smile \(x\)"
    assert said(interrogate_deepbooru_score_threshold=0.1).startswith("1girl")


def test_words_are_put_together_as_bert_does() -> None:
    from sd_cloud.engines.diffusion.interrogate.captions import bert_words, sentence

    numbers = {word: number for number, word in enumerate(bert_words())}
    words = [
        "[CLS]",
        "a",
        "play",
        "##ing",
        "child",
        "'",
        "s",
        "dog",
        ",",
        "isn",
        "'",
        "t",
        "it",
        "?",
        "[SEP]",
        "[PAD]",
    ]
    assert sentence([30522, *(numbers[word] for word in words)]) == "a playing child's dog, isn't it?"
