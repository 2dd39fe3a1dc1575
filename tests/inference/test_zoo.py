"""Models by name, as LAVIS users load them."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image

import chatbridge.models
from chatbridge.inference import Engine, zoo
from chatbridge.models import ChatBridge, load_model, load_model_and_preprocess, load_preprocess, model_zoo
from tests import tiny
from tests.inference.tools import write_config, write_media
from tests.patience import PATIENCE


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder whose eval_configs/ holds one tiny model."""
    config = write_config(tmp_path)
    (tmp_path / "eval_configs").mkdir()
    config.rename(tmp_path / "eval_configs" / "toy.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_repository_offers_the_published_model_and_the_quickstarts(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # as a notebook anywhere sees an editable installation
    architectures = dict(model_zoo)
    assert list(architectures) == ["chatbridge"]
    assert {"chatbridge_eval", "quickstart"} <= set(architectures["chatbridge"])
    assert "quickstart_templates" not in architectures["chatbridge"]
    assert len(model_zoo) == len(architectures["chatbridge"])
    assert "chatbridge_eval, quickstart" in str(model_zoo)
    assert model_zoo.find("chatbridge", "quickstart") == tiny.ROOT / "eval_configs" / "quickstart.yaml"


def test_a_wheel_finds_its_own(monkeypatch, tmp_path):
    """Installed from a wheel, the YAML files lie where pyproject.toml tells setuptools to put them."""
    share = tmp_path / "share" / "chatbridge" / "eval_configs"
    share.mkdir(parents=True)
    (share / "mine.yaml").write_text("model: {arch: other}")
    (share / "broken.yaml").write_text("a: [")
    (share / "list.yaml").write_text("- a")
    monkeypatch.setattr(zoo.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(zoo.chatbridge, "__file__", str(tmp_path / "site-packages" / "chatbridge" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    assert dict(model_zoo) == {"other": ["mine"]}
    text = (tiny.ROOT / "pyproject.toml").read_text()
    for name in ("eval_configs", "model_configs"):  # bases of the former
        assert f'"share/chatbridge/{name}" = ["{name}/*.yaml"]' in text


def test_the_working_folder_comes_first(here):
    assert model_zoo.find("chatbridge", "toy") == here / "eval_configs" / "toy.yaml"
    assert {"toy", "quickstart"} <= set(dict(model_zoo)["chatbridge"])


def test_load_model(here):
    model = load_model("chatbridge", "toy", is_eval=True)
    assert isinstance(model, ChatBridge) and not model.training
    assert load_model("chatbridge", "toy").training
    by_path = load_model(str(here / "eval_configs" / "toy.yaml"), is_eval=True)
    for one, other in zip(model.parameters(), by_path.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_instead_of_the_named_ones(here):
    config = here / "eval_configs" / "toy.yaml"
    tree = yaml.safe_load(config.read_text())
    tree["model"]["weights"] = ["not there yet"]
    config.write_text(yaml.safe_dump(tree))
    with pytest.raises(ValueError, match="model.weights.*not there yet"):
        load_model("chatbridge", "toy")
    whole = here / "a folder, with [marks]"
    tree["model"]["weights"] = []
    model = load_model(str(tiny.write_yaml(here, tree, "plain.yaml")))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    from chatbridge.common.checkpoint import save_checkpoint

    save_checkpoint(whole, 3, model.trainable_state(), {}, "")
    loaded = load_model("chatbridge", "toy", checkpoint=whole)
    name = "bridges.audio.projector.projection.weight"
    assert torch.equal(loaded.get_parameter(name), model.get_parameter(name))
    loaded = Engine.load(config, checkpoint="a folder, with [marks]", device="cpu").model
    assert torch.equal(loaded.get_parameter(name), model.get_parameter(name))


def test_preprocessing(here):
    files = write_media(here / "files")
    model, media, text = load_model_and_preprocess("chatbridge", "toy", is_eval=True)
    picture = Image.open(files["a.png"])
    image = media["image"]["eval"](picture)
    assert torch.equal(image, media["image"]["eval"](files["a.png"]))
    assert torch.equal(image, media["image"]["eval"](files["a.png"].read_bytes()))
    assert model.encode("image", image[None]).shape == (1, 4, 48)
    assert {name: tuple(one["eval"](files[file]).shape) for name, one, file in (
        ("video", media["video"], "loud.mp4"), ("audio", media["audio"], "loud.mp4"))} == {
            "video": (4, 3, 28, 28), "audio": (1, 64, 64)}  # fmt: skip
    random.seed(0)
    assert media["video"]["train"](files["loud.mp4"]).shape == (4, 3, 28, 28)
    assert text["eval"]("What's THAT?") == text["train"]("What's THAT?") == "What's THAT?"


def test_captions_are_cleaned_where_the_task_does_so(tmp_path):
    config = tiny.write_yaml(tmp_path, tiny.make_config(tmp_path, "alignment"))
    assert load_preprocess(config)[1]["eval"](" A  Dog/cat ") == "a dog cat"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("chatbrige", "toy"), "no architecture is called 'chatbrige'; did you mean 'chatbridge'"),
        (("chatbridge", "toi"), "has no type 'toi'; did you mean 'toy'"),
        (("chatbridge",), "has no type 'None'"),
        (("none.yaml",), "none.yaml: no such configuration file"),
    ],
)
def test_unknown_names(here, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_model(*arguments)


def test_no_configurations_anywhere(monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "config_folders", list)
    with pytest.raises(ValueError, match="no folder eval_configs/.*give the path"):
        model_zoo.find("chatbridge", "toy")


@pytest.mark.slow
def test_models_alone_import_nothing_above_them():
    code = "import sys, chatbridge.models as m; assert not [n for n in sys.modules if n.startswith('chatbridge.inf')]; "
    code += "m.model_zoo; assert 'chatbridge.inference.zoo' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
    with pytest.raises(AttributeError, match="no attribute 'load_everything'"):
        _ = chatbridge.models.load_everything
