"""``hqde evaluate``, ``predict`` and ``report`` on what a training left."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest

from hqde.ensemble import Ensemble

SMALL = ("--workers", 2, "--groups", 2, "--epochs", 40, "--set", "training.learning_rate=0.03")


@pytest.fixture
def run(hqde, table, tmp_path):
    assert hqde("train", "--data", table, *SMALL, "--out", "run").code == 0
    return tmp_path / "run"


def test_evaluate_repeats_the_figures_of_the_run(hqde, run):
    done = hqde("evaluate", run, "--format", "json")
    assert done.code == 0, done.err
    figures, metrics = json.loads(done.out), json.loads((run / "metrics.json").read_text())
    assert figures["accuracy"] == metrics["accuracy"]
    assert figures["nll"] == pytest.approx(metrics["calibrated"]["nll"], rel=1e-9)
    assert figures["num_rows"] == 24
    shown = hqde("evaluate", run)
    assert "member 1" in shown.out
    assert "disagreement" in shown.out


def test_matrix_scaling_is_asked_for_told_and_kept(hqde, tmp_path):
    flags = (
        "--model mlp --workers 8 --groups 1 --epochs 4 --set data.partition=dirichlet --set data.alpha=0.1"
    )
    done = hqde("train", *flags.split(), "--set", "ensemble.matrix_scaling=true", "--out", "run")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    accuracy = metrics["calibrated"]["accuracy"]
    assert metrics["matrix_scaling"]
    assert accuracy > metrics["accuracy"] + 0.1
    assert f"test accuracy {accuracy:.4f} with matrix scaling" in done.out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "with a matrix scaling, fitted on the validation split" in page
    assert "Temperature never changes" not in page
    for options in ((), ("--combiner", "mean")):
        figures = json.loads(hqde("evaluate", "run", *options, "--format", "json").out)
        assert figures["matrix_scaling"]
        assert figures["accuracy"] == pytest.approx(accuracy, abs=0.01)
    assert "matrix scaling" in hqde("evaluate", "run").out
    kept = json.loads(hqde("select", "run", "--size", 1, "--out", "kept", "--format", "json").out)
    assert kept["matrix_scaling"]
    assert Ensemble.load(tmp_path / "kept").matrix_scaling is not None


def test_an_artefact_alone_is_judged_on_the_data_it_is_given(hqde, run, table):
    assert hqde("evaluate", run / "artefact").code == 2
    figures = json.loads(hqde("evaluate", run / "artefact", "--data", table, "--format", "json").out)
    assert figures["num_rows"] == 120
    assert figures["accuracy"] > 0.6


def test_foreign_rows_are_told_by_their_uncertainty(hqde, run, tmp_path):
    # Between the classes, where all three meet, nobody can be sure.
    lines = ["a,b,c,d"] + ["0.3,0.0,0.0,0.0"] * 20
    (tmp_path / "foreign.csv").write_text("\n".join(lines) + "\n")
    done = hqde("evaluate", run, "--ood", "foreign.csv", "--format", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["ood_auroc"]["total"] > 0.8


@pytest.mark.parametrize("suffix", ["csv", "npz"])
def test_predict_writes_a_row_for_every_row(hqde, run, table, tmp_path, suffix):
    done = hqde("predict", run, "--data", table, "--out", f"p.{suffix}", "--format", "json")
    assert done.code == 0, done.err
    names = json.loads(done.out)["columns"]
    expected = ["predicted", "probability", "p_ash", "p_birch", "p_cedar", "total", "aleatoric", "epistemic"]
    assert names == expected
    if suffix == "csv":
        with (tmp_path / "p.csv").open() as file:
            columns = {name: [row[name] for row in csv.DictReader(file)] for name in ["predicted"]}
        with (tmp_path / "p.csv").open() as file:
            sums = [
                sum(float(row[f"p_{k}"]) for k in ("ash", "birch", "cedar")) for row in csv.DictReader(file)
            ]
    else:
        loaded = np.load(tmp_path / "p.npz")
        columns = {"predicted": loaded["predicted"].tolist()}
        sums = (loaded["p_ash"] + loaded["p_birch"] + loaded["p_cedar"]).tolist()
    assert len(columns["predicted"]) == 120
    assert set(columns["predicted"]) <= {"ash", "birch", "cedar"}
    assert sums == pytest.approx([1.0] * 120, abs=1e-5)


def test_rows_without_labels_can_be_predicted(hqde, run, table, tmp_path):
    lines = table.read_text().splitlines()
    (tmp_path / "bare.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    assert hqde("predict", run, "--data", "bare.csv", "--out", "bare_p.csv").code == 0
    assert hqde("predict", run, "--data", table, "--out", "p.csv").code == 0
    assert (tmp_path / "bare_p.csv").read_text() == (tmp_path / "p.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "nowhere"], ["nowhere"]),
        (["evaluate", "run", "--data", "digits"], ["digits"]),
        (["predict", "run", "--data", "trees.csv", "--out", "p.xyz"], ["cannot write 'p.xyz'"]),
        (["predict", "run", "--data", "trees.csv", "--out", "no/p.csv"], ["no directory"]),
        (["predict", "run", "--data", "missing.csv", "--out", "p.csv"], ["missing.csv"]),
        (["report", "nowhere"], ["nowhere"]),
    ],
    ids=str,
)
def test_bad_usage_is_one_sentence(hqde, run, arguments, words):
    done = hqde(*arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert all(word in done.err for word in words)


def test_an_existing_file_is_not_overwritten_unasked(hqde, run, table, tmp_path):
    (tmp_path / "p.csv").write_text("mine")
    assert hqde("predict", run, "--data", table, "--out", "p.csv").code == 2
    assert (tmp_path / "p.csv").read_text() == "mine"
    assert hqde("predict", run, "--data", table, "--out", "p.csv", "--overwrite").code == 0


def test_a_tampered_artefact_is_refused(hqde, run, table):
    victim = run / "artefact" / "member-000.safetensors"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(bytes(content))
    done = hqde("evaluate", run)
    assert done.code == 2
    assert "member-000.safetensors was altered" in done.err


def test_report_is_made_anew(hqde, run, tmp_path):
    done = hqde("report", run, "--out", "again.html", "--format", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["bytes"] == (tmp_path / "again.html").stat().st_size


def test_version_and_help(hqde):
    assert hqde("--version").out.strip() == "0.2.0"
    assert "train" in hqde("--help").out
    assert "train" in hqde().out


def test_several_runs_are_compared_and_one_is_exported(hqde, run, tmp_path):
    assert not (run / "events.jsonl").exists()  # a normal run is quiet
    shutil.copytree(run, tmp_path / "copy")
    done = hqde("report", run, tmp_path / "copy", "--format", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["report"] == "comparison.html"
    done = hqde("report", run, "--export", "csv", "--out", "tables", "--format", "json")
    assert json.loads(done.out)["tables"][-1] == "tables/workers.csv"
    assert hqde("report", run, "--export", "xls").code == 2
    assert hqde("report", run, tmp_path / "copy", "--export", "csv").code == 2


def test_members_can_be_combined_otherwise(hqde, run):
    plain = json.loads(hqde("evaluate", run, "--format", "json").out)
    assert plain["combiner"] == "mean"  # ten validation rows are too few to choose by
    for name in ("entanglement", "stacking", "median"):
        done = hqde("evaluate", run, "--combiner", name, "--format", "json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["combiner"] == name
    assert "combiner superposition, temperature" in hqde("evaluate", run, "--combiner", "superposition").out
    assert "did you mean 'stacking'" in hqde("evaluate", run, "--combiner", "staking").err
    done = hqde("evaluate", run / "artefact", "--data", "trees.csv", "--combiner", "stacking")
    assert (done.code, "no validation rows" in done.err) == (2, True)


def test_a_combiner_is_set_for_a_run(hqde, table, tmp_path):
    setting = ("--set", "ensemble.combiner=superposition", "--set", "data.validation_fraction=0.3")
    assert hqde("train", "--data", table, *SMALL, *setting, "--out", "run").code == 0
    manifest = json.loads((tmp_path / "run" / "artefact" / "manifest.json").read_text())
    assert manifest["combiner"] == "superposition"
    assert len(manifest["combiner_settings"]["shares"]) == 2
    assert 'combiner = "superposition"' in (tmp_path / "run" / "config.toml").read_text()
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert len(evaluation["entanglement_matrix"]) == 2
    assert "mutual_information" in json.loads((tmp_path / "run" / "metrics.json").read_text())["diversity"]


@pytest.mark.usefixtures("int8_processor")
def test_predicting_in_8_bits_costs_little(hqde):
    done = hqde("train", "--data", "digits", "--model", "cnn", "--workers", 2, "--epochs", 2, "--out", "run")
    assert done.code == 0, done.err
    exact, rounded = (
        json.loads(hqde("evaluate", "run", *precision, "--format", "json").out)
        for precision in ([], ["--precision", "int8"])
    )
    assert rounded["nll"] != exact["nll"]
    assert abs(rounded["nll"] - exact["nll"]) < 0.05
    assert hqde("predict", "run", "--data", "digits", "--out", "p.csv", "--precision", "int8").code == 0
