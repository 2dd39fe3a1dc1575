"""A conversation is read exactly as training writes it, and one by one exactly as in a batch."""

from __future__ import annotations

import json

import pytest
import torch

from chatbridge import register_all
from chatbridge.common.config import load_config
from chatbridge.conversation import PromptFormat
from chatbridge.datasets.records import Record
from chatbridge.inference import ChatSession, Engine, Exchange, GenerationSettings
from chatbridge.inference.prompt import Prompt, dialogue_of
from chatbridge.runners.assembly import Assembly
from chatbridge.runners.evaluation import EvaluationRunner
from tests import tiny
from tests.inference.tools import make_engine, write_config

TALK = [("What colour is it?", "red."), ("And why so?", "nobody knows\nthat"), ("Thanks!", "you are welcome")]

FORMATS = {
    "published": {},
    "other tags": {
        "human": "USER: ", "human_end": "\n", "assistant": "ASSISTANT:", "answer_end": "</s>", "system": "Hi.",
    },
    "other words": {"intros": {"image+audio": "See {image}, hear {audio}."}, "names": {"video": "film"}},
    "audio first": {"intros": {"image+audio": "Hear {audio} and see {image}."}},
}  # fmt: skip


def training_row(config, kind, turns, names):
    """A finished conversation as a training batch holds it: ids, and which positions are media."""
    register_all()
    tree = load_config(config, [f"datasets.chats.kind={kind}"]).config
    folder = str(next(iter(names.values())).parent)
    tree.datasets["chats"].media = dict.fromkeys(names, folder)
    assembly = Assembly(load_config(config))
    dataset = type(assembly.datasets["chats"])(tree.datasets["chats"], "chats", assembly.parts)
    record = Record("one", files={m: (file.name,) for m, file in names.items()}, turns=tuple(turns))
    example = dataset.read(record, dataset.kinds[0])
    batch = assembly.task.collator(assembly.tokenizer)([example], "chats")
    media = [None if slot < 0 else batch.modalities[slot] for slot in batch.slots_BL[0].tolist()]
    return batch, [i if m is None else m for i, m in zip(batch.input_ids_BL[0].tolist(), media, strict=True)]


def read_by_the_model(positions):
    return [p if isinstance(p, int) else p[0].split(":")[0] for p in positions]


@pytest.mark.parametrize("format", FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize("kind", ["ti-conv", "ta-conv", "tia-conv", "tva-conv"])
def test_a_finished_conversation_has_the_very_tokens_of_training(tmp_path, files, kind, format):
    config = write_config(tmp_path, prompt=format)
    modalities = {"ti": ["image"], "ta": ["audio"], "tia": ["image", "audio"], "tva": ["video", "audio"]}
    names = {"image": files["a.png"], "audio": files["a.wav"], "video": files["loud.mp4"]}
    names = {modality: names[modality] for modality in modalities[kind.split("-")[0]]}
    turns = [turn for q, a in TALK for turn in (("human", q), ("gpt", a))]
    batch, expected = training_row(config, kind, turns, names)

    engine = Engine.load(config, device="cpu")
    shown = [engine.medium(file, modality) for modality, file in names.items()]
    exchanges = [Exchange(q, shown if not n else [], a) for n, (q, a) in enumerate(TALK)]
    positions, media = engine.writer.write(exchanges)
    assert read_by_the_model(positions) == expected
    # ... and what is asked is what training has in front of each answer.
    for number in range(len(TALK)):
        asked = [*exchanges[:number], Exchange(exchanges[number].text, exchanges[number].media)]
        prompt = engine.prompt(asked, GenerationSettings(max_new_tokens=4))
        assert positions[: len(prompt.positions)] == prompt.positions
        assert batch.labels_BL[0, len(prompt.positions)] == batch.input_ids_BL[0, len(prompt.positions)] >= 0
        assert batch.labels_BL[0, len(prompt.positions) - 1] == -100
    # The embeddings that both give are equal, too: every medium stands in its place.
    with torch.no_grad():
        fused = engine.model.fuse(batch)
    prompt = Prompt(positions, media)
    torch.testing.assert_close(engine.embed(prompt), fused)
    for start in range(0, len(positions), 3):  # also in the midst of a medium's rows
        assert torch.equal(engine.embed(prompt, start), engine.embed(prompt)[:, start:])


def test_media_of_one_kind_in_a_row_are_written_as_one_source(tmp_path, files):
    engine = make_engine(tmp_path)
    a, b = engine.medium(files["a.png"]), engine.medium(files["b.png"])
    sound = engine.medium(files["a.wav"])
    text = PromptFormat().text

    def written(*media):
        return text(dialogue_of([Exchange("so?", list(media))]), "<{}>")

    assert written(a, b) == "###Human: Given following image: <image><image>.###Human: so?###Assistant:"
    assert written(a, sound, b).startswith("###Human: Given following image: <image> and audio: <audio> and image: <i")
    positions, media = engine.writer.write([Exchange("so?", [a, sound, b])])
    assert [medium.name for _, medium in media] == ["a.png", "a.wav", "b.png"]
    assert [positions[start][0] for start, _ in media] == [a.identity, sound.identity, b.identity]


def test_tasks_without_a_prompt_format_are_refused(tmp_path):
    config = tiny.write_yaml(tmp_path, tiny.make_config(tmp_path, "alignment"))
    with pytest.raises(ValueError, match="AlignmentTask has no prompt format.*task.name: instruction"):
        Engine.load(config, device="cpu")


@pytest.fixture
def questions(tmp_path):
    """A YAML that asks about pictures, sounds and both, in questions of different lengths."""
    tree = tiny.make_config(tmp_path, "instruction", runner="evaluation")
    for bridge in tree["model"]["bridges"].values():
        bridge["perceiver"] |= {"init_std": None, "query_std": 1.0}
        bridge["projection_scale"] = "auto"
    keep = ("output_dir", "device", "threads", "runner")
    tree["run"] = {k: v for k, v in tree["run"].items() if k in keep} | {"max_new_tokens": 12}
    entries = json.loads((tmp_path / "media" / "chats.json").read_text())
    for number, entry in enumerate(entries[:7]):
        entry["conversations"][0]["value"] = "Tell me, " * number + "what is it?"
    (tmp_path / "media" / "chats.json").write_text(json.dumps(entries[:7]))
    tree["validation"] = {"chats": tree.pop("datasets")["chats"] | {"kind": "ti-conv%tia-conv%ta-conv"}}
    return tree


def answers(tmp_path, tree, batch_size, stop):
    tree["validation"]["chats"]["batch_size"] = batch_size
    file = tiny.write_yaml(tmp_path, tree, f"batch_{batch_size}.yaml")
    register_all()
    assembly = Assembly(load_config(file))
    assembly.task.stop = stop
    EvaluationRunner(assembly.config.run, assembly).run()
    lines = (tmp_path / "output" / "predictions.jsonl").read_text().splitlines()
    return {(row["id"], *sorted(row["media"])): row for row in map(json.loads, lines)}


@pytest.mark.parametrize("stop", ["###", "e"])
def test_answers_in_batches_are_those_given_one_by_one(tmp_path, questions, stop):
    """Left padding, other media beside each, rows that end at different tokens: in fp32 none of it is felt."""
    alone = answers(tmp_path, questions, 1, (stop,))
    texts = {key: row["prediction"] for key, row in alone.items()}
    assert len(texts) == 21 and len(set(texts.values())) > 15
    for size in (4, 21):
        together = answers(tmp_path, questions, size, (stop,))
        assert {key: row["prediction"] for key, row in together.items()} == texts
    if stop != "###":
        return
    # A conversation gives the same answers as evaluation.
    engine = Engine.load(tmp_path / "batch_1.yaml", device="cpu")
    for row in alone.values():
        session = ChatSession(engine, GenerationSettings(max_new_tokens=12))
        shown = [engine.medium(file, m) for m in ("image", "audio") for file in row["media"].get(m, [])]
        assert session.say(row["question"], media=shown).text == row["prediction"]
