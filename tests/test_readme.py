"""README.md: its commands parse, its files exist, its tables are filled."""

import pathlib
import re
import shlex

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from tests import training_helpers as helpers
from yt8m_distill import command_line, flag_groups, settings
from yt8m_distill.data import frame_sampling
from yt8m_distill.losses import registered
from yt8m_distill.models import base, builder

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN_NAMES = ("MyNetwork", "cosine", "every")  # What its module registers.
GROUPS = {
    "yt8m-train": flag_groups.RUN_GROUPS,
    "yt8m-eval": (
        settings.CheckpointSettings,
        settings.ReadingSettings,
        settings.EvalSettings,
    ),
    "yt8m-inference": (
        settings.CheckpointSettings,
        settings.ReadingSettings,
        settings.InferenceSettings,
    ),
    "yt8m-export": (settings.CheckpointSettings, settings.ExportSettings),
}


def commands() -> list[list[str]]:
    """Every command of GROUPS in the code blocks, as words."""
    blocks = re.findall(r"```\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [w for w in words if w and w[0] in GROUPS]


def python_blocks() -> list[str]:
    """The Python examples."""
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_is_a_command_for_every_script():
    assert {words[0] for words in commands()} == set(GROUPS)


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[0])
def test_a_command_parses_and_its_settings_hold(words):
    values = flags.FlagValues()
    flag_groups.define([flag_groups.Preset, *GROUPS[words[0]]], values)
    left = values(command_line.expand(words))
    assert left == words[:1]
    for group in GROUPS[words[0]]:
        flag_groups.read(group, values)


def test_the_python_lines_run_as_described(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    helpers.write_data(tmp_path / "yt8m")
    run = helpers.make_run("run", "yt8m", mode="baseline", num_epochs=1)
    helpers.train(run)
    (text,) = (t for t in python_blocks() if "my_models" not in t)
    # 12 videos in batches of 8; the network of paper size is made narrower.
    text = text.replace("batch_size=64", "batch_size=8")
    text = text.replace("block_len=20", "block_len=20, cells=8")
    block, loop = text.split("for batch in ")
    frames = np.random.default_rng(0).integers(0, 256, [2, 25, 1152], np.uint8)
    names = {"frames": frames, "num_frames": np.int32([25, 7])}
    exec(compile(block, "README.md", "exec"), names)
    logits, encoding, states, _ = names["outputs"]
    assert (logits.shape, encoding.shape, states) == ((2, 3862), (2, 32), None)
    found = []
    loop = "for batch in " + loop + "    found.append((scores, batch['weights']))\n"
    exec(compile(loop, "README.md", "exec"), names | {"found": found})
    assert [int(sum(weights)) for _, weights in found] == [8, 4]
    assert all(scores.shape == (8, 10) for scores, _ in found)
    assert len(np.unique(found[0][0])) > 10


def test_the_module_of_ones_own_trains_where_the_last_batch_is_not_full(
    tmp_path, monkeypatch
):
    # Other tests may have used the names; none keeps these.
    for registry in (base.MODELS, registered.LOSSES, frame_sampling.SAMPLERS):
        others = {n: v for n, v in registry._entries.items() if n not in OWN_NAMES}
        monkeypatch.setattr(registry, "_entries", others)
    (text,) = (t for t in python_blocks() if "my_models" in t)
    exec(compile(text, "README.md", "exec"), {"__name__": "my_models"})
    helpers.write_data(tmp_path)
    run = helpers.make_run(
        tmp_path / "run",
        tmp_path,
        mode="parallel",
        teacher="MyNetwork",
        student="MyNetwork(width=3)",
        student_loss="ce + 10*cosine",
        frame_sampler="every(step=3)",
        num_epochs=1,
    )
    # 36 videos in batches of 8: four padding rows in the last one.
    assert helpers.train(run)["parallel"]["finished"]
    # Of a video of 4 frames, those at 0 and 3.
    assert frame_sampling.pick("every(step=3)", tf.constant([4]), 5, 20, None)[1] == [2]


def test_every_linked_file_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing


def test_every_table_of_results_is_filled_by_the_tool():
    for name in ("demo", "example", "audioset"):
        table = re.search(rf"<!-- {name} -->(.*?)<!-- /{name} -->", README, re.DOTALL)
        assert table and table.group(1).count("\n|") >= 4, name


def test_every_flag_that_the_text_names_exists():
    values = flags.FlagValues()
    for group in {group for groups in GROUPS.values() for group in groups}:
        for field in [f.name for f in group.__dataclass_fields__.values()]:
            if field not in values:
                flags.DEFINE_string(field, "", "", flag_values=values)
    others = {"preset", "flagfile", "help", "data_pattern", "logdir"}
    others |= {"write_to", "section", "table", "known_runs"}
    named = set(re.findall(r"--(?:no(?=frame))?([a-z_]+)", README))
    assert not {name for name in named if name not in values} - others


def test_the_table_of_networks_gives_every_argument_and_default():
    text = (ROOT / "docs" / "networks.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    models = builder.base.MODELS  # The builder imports all networks.
    own = [n for n in models if models.get(n).__module__.startswith("yt8m_distill.")]
    technical = {"implementation", "encoding_size"}
    for name in own:
        (row,) = [row for row in rows if f"`{name}`" in row.split(" | ")[0]]
        for argument, default in models.arguments(name).items():
            if default is not None and argument not in technical:
                assert f"{argument}={default!r}".replace("'", '"') in row, name
