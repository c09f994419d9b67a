"""tools/segments.py: every way is a valid run, and the table has all of them."""

import pytest

from tools import segments
from tools.reproduction import plan
from yt8m_distill.training import modes

pytestmark = pytest.mark.once


def test_every_way_is_a_run_and_a_row_over_its_seeds(tmp_path):
    made = segments.make_experiments(tmp_path, [3])
    for experiment in made:
        name = experiment.cell.method
        assert plan.read_settings(experiment.command[2:]) == experiment.run
        assert experiment.train_dir == f"{tmp_path}/{name}-3"
        (*_, phase) = modes.phases(experiment.run, resolved=False)
        assert experiment.role == phase.trained[0].name
        assert experiment.run.data.segment_labels == (name != segments.VIDEOS)
        assert bool(phase.trained[0].context) == ("aware" in name)
        assert (experiment.teacher or experiment) == made[0]
    names = [experiment.cell.method for experiment in made]
    lines = []
    for number, (name, way) in enumerate(segments.WAYS.items()):
        assert (name in names) == (way.settings is not None)
        if way.mean_with:
            other, weight = way.mean_with
            assert {way.of, other} <= {*names} and 0 < weight <= 1
        for seed, value in enumerate((0.1, 0.2)):
            numbers = dict.fromkeys(segments.METRICS, value + number / 100)
            lines.append({"way": name, "seed": seed, **numbers})
    table = segments.table_of(lines)
    # Of 0.1 and 0.2: mean 0.15, sample standard deviation 0.1 / sqrt(2).
    assert table.rows[0][1:] == ["0.150 ± 0.071"] * len(segments.METRICS)
    assert [row[0] for row in table.rows] == [w.label for w in segments.WAYS.values()]
