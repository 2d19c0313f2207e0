"""`raysys runs`, on a server that the environment names."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raysys import cli
from raysys.errors import RaysysError
from raysys.storage import Storage
from raysys.tracking import Runs, open_run, tracking_uri


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """Two jobs, of which each trained something, and one that has failed."""
    with pytest.MonkeyPatch.context() as environment:
        uri = f"sqlite:///{tmp_path_factory.mktemp('server')}/far.db"
        environment.setenv("MLFLOW_TRACKING_URI", uri)
        storage = Storage(tmp_path_factory.mktemp("root"))
        environment.setenv("RAYSYS_STORAGE", storage.root)
        assert run().startswith("no runs in sqlite:///")
        for name, rate in (("films-1", 0.1), ("films-2", 0.2)):
            job = open_run(
                storage, "films", name, settings={"rate": rate, "seed": 0},
                tables={"train": f"f{rate}"},
            )  # fmt: skip
            folder = Storage(storage.uri(f"runs/{name}"))
            job.nest(folder)
            part = open_run(folder, "training", "net", settings={"epochs": 3})
            part.log_curve("loss", [3.0, 2.0, rate])
            part.log({"system/cpu_percent": 90.0}, step=1)
            part.end("FINISHED")
            job.log_curve("loss", [2 * rate, rate])
            job.end("FINISHED", {"ndcg_at_10": rate / 2, "films": 1000})
        open_run(storage, "flights", "late-1").end("FAILED")
        yield storage


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, ["runs", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_the_server_holds_all_and_the_root_no_database(server: Storage) -> None:
    assert tracking_uri(server).endswith("/far.db")
    assert not list(Path(server.root).rglob("*.db"))


def test_the_newest_is_listed_first(server: Storage) -> None:
    header, *lines = [line.split() for line in run().splitlines()]
    assert header == ["run", "experiment", "status", "started", "took", "metrics"]
    assert [line[:3] for line in lines] == [
        ["late-1", "flights", "FAILED"],
        ["films-2", "films", "FINISHED"],
        ["films-1", "films", "FINISHED"],
    ]
    assert run().splitlines()[2].endswith("ndcg_at_10 0.1, films 1000")
    assert len(run("--limit", "1").splitlines()) == 2


def test_parts_stand_indented_below_their_run(server: Storage) -> None:
    names = [line[: line.index(" ", 3)] for line in run("--all").splitlines()[1:]]
    assert names == ["late-1", "films-2", "  net", "films-1", "  net"]


def test_show_says_all_of_a_run(server: Storage) -> None:
    said = run("show", "films-1")
    for part in (
        "films-1: FINISHED, experiment films",
        "\nsettings\n  rate  0.1\n  seed  0\n",
        "data.train.fingerprint",
        "\nresults\n  ndcg_at_10  0.05\n  films       1000\n",
        "\ncurves, last values\n  loss  0.1\n",
        "\nchild runs\n  run  experiment",
        "\n  net  films",
    ):
        assert part in said
    of_part = run("show", "films-1/net")
    assert "net: FINISHED" in of_part
    assert "\n  epochs  3\n" in of_part
    assert "\nmeters, last values\n  system/cpu_percent  90" in of_part


def test_a_beginning_or_an_id_is_enough(server: Storage) -> None:
    assert run("show", "late").startswith("late-1: FAILED")
    runs = Runs(server)
    assert run("show", runs.find("films-2/n").id).startswith("net: FINISHED")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("films", "2 runs match 'films': films-2 of "),
        ("net", "2 runs match 'net'"),
        ("nobody", "no run 'nobody' in sqlite:///"),
        ("films-1/nobody", "no run 'films-1/nobody'"),
        ("film_", "no run 'film_'"),
        ("it's", "no run"),
    ],
)
def test_a_name_that_means_no_run_or_several(server: Storage, name: str, said: str) -> None:
    with pytest.raises(RaysysError) as refused:
        Runs(server).find(name)
    assert said in str(refused.value)


def test_compare_shows_what_differs(server: Storage) -> None:
    lines = [line.split() for line in run("compare", "films-1", "films-2").splitlines()]
    assert ["rate", "0.1", "0.2"] in lines
    assert ["data.train.fingerprint", "f0.1", "f0.2"] in lines
    assert ["ndcg_at_10", "0.05", "0.1"] in lines
    assert ["loss", "0.1", "0.2"] in lines
    assert "seed" not in [line[0] for line in lines if line]
    one = run("compare", "films-1", "films-2", "late", "--metric", "ndcg_at_10").splitlines()
    assert one[-2:][0].split() == ["metrics", "films-1", "films-2", "late-1"]
    assert one[-1].split() == ["ndcg_at_10", "0.05", "0.1", "-"]


def test_compare_plots_curves(server: Storage, tmp_path: Path) -> None:
    file = tmp_path / "curves.png"
    assert run("compare", "films-1/net", "films-2/net", "--plot", str(file)).endswith(f"{file}\n")
    assert file.read_bytes().startswith(b"\x89PNG")
    runs = Runs(server)
    assert runs.curve(runs.find("films-2/net"), "loss") == ([1, 2, 3], [3.0, 2.0, 0.2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["films-1"], "films-1: give two or more runs"),
        (["films-1", "films-2", "--metric", "auc"], "no run has a metric 'auc'; they have: films,"),
        (["films-1", "films-2", "--metric", "films", "--plot", "a.png"], "cannot plot 'films'"),
        (["films-1", "late-1", "--plot", "a.png"], "share no curve to plot"),
    ],
)
def test_a_comparison_that_cannot_be(server: Storage, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(cli.app, ["runs", "compare", *arguments])
    assert isinstance(done.exception, RaysysError)
    assert said in str(done.exception)
    assert not Path("a.png").exists()


def test_a_list_in_a_pipe_is_plain(server: Storage) -> None:
    assert all(character.isprintable() or character == "\n" for character in run("--all"))
