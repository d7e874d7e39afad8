"""The W&B workspace of a sweep as code: `python sweeps/dashboard.py NAME --out FILE.json`.

Parameters against results, parallel coordinates, importance, curves and media by trial. The file needs no network; with
an API key, and an entity that W&B knows, the workspace is also saved there.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import corrdream
from sweeps.folders import Sweep, SweepFolder, load_sweep
from sweeps.locks import SweepError
from sweeps.results import METRICS
from sweeps.summary import config_key

PROJECT = "corrdream"
CURVES = ("loss/total", "loss/sds", "loss/correspondence", "correspondence/residual", "opacity", "grad_norm")
SYSTEM = ("system/cpu", "system/proc.memory.rssMB", "system/gpu.0.gpu", "system/gpu.0.memoryAllocatedBytes")
MEDIA = ("preview", "matches", "turntable", "normals", "turntable_video", "mesh")
WIDE = 24  # columns of the workspace's grid


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 with one line that says what is wrong."""
    arguments = _parse(argv)
    try:
        workspace = build_workspace(
            load_sweep(SweepFolder(arguments.storage / arguments.name)),
            entity=arguments.entity or "",
            project=arguments.project,
        )
        if arguments.out:
            _write(arguments.out, workspace)
        if arguments.entity and corrdream.has_wandb_key():
            _save(workspace)
        elif not arguments.out:
            raise SweepError(
                "nothing to do: give --out FILE.json, or set WANDB_API_KEY and --entity to save it on W&B."
            )
    except ValueError as error:
        print(f"dashboard: {error}", file=sys.stderr)
        return 2
    return 0


def build_workspace(sweep: Sweep, *, entity: str, project: str) -> Any:
    """A wandb_workspaces Workspace that shows the runs of one sweep; nothing is sent."""
    try:
        import wandb_workspaces.expr as expr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise SweepError(
            f"the dashboard needs wandb-workspaces (pip install 'corrdream[dashboard]'): {error}"
        ) from error
    parameters = {key: config_key(sweep, key) for trial in sweep.trials for key in trial.labels}
    sections = {
        "Parameters against results": _scatter_plots(parameters),
        "All together": _overviews(sweep, parameters),
        "Media by trial": _media(),
        "Curves": _curves(CURVES, x="step"),
        "System": _curves(SYSTEM, x="RelativeTime(Wall)"),
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"Sweep {sweep.name}",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
        settings=ws.WorkspaceSettings(x_axis="step"),
        runset_settings=ws.RunsetSettings(
            filters=[expr.Metric("group") == sweep.name, expr.Metric("jobType") == "trial"],
            order=[expr.Ordering(expr.Summary(_final(sweep.metric)), ascending=sweep.mode == "min")],
            pinned_columns=[f"summary:{_final(sweep.metric)}", *(f"config:{key}" for key in parameters.values())],
        ),
    )


def _scatter_plots(parameters: dict[str, str]) -> list[Any]:
    """One a parameter and metric."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.ScatterPlot(
            title=f"{metric.title} by {_leaf(name)}",
            x=wr.Config(key),
            y=wr.SummaryMetric(_final(metric.key)),
            regression=True,
        )
        for name, key in parameters.items()
        for metric in METRICS
    ]


def _overviews(sweep: Sweep, parameters: dict[str, str]) -> list[Any]:
    """Parallel coordinates from the parameters to the results, what matters for the sweep's metric, what differs."""
    import wandb_workspaces.reports.v2 as wr

    columns = [wr.ParallelCoordinatesPlotColumn(wr.Config(key), _leaf(name)) for name, key in parameters.items()]
    columns += [wr.ParallelCoordinatesPlotColumn(wr.Config(key), key) for key in ("prompt", "seed")]
    columns += [
        wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(_final(metric.key)), metric.title) for metric in METRICS
    ]
    return [
        wr.ParallelCoordinatesPlot(title="Parameters to results", columns=columns, layout=wr.Layout(w=WIDE, h=10)),
        wr.ParameterImportancePlot(with_respect_to=_final(sweep.metric), layout=wr.Layout(w=WIDE // 2, h=8)),
        wr.RunComparer(diff_only=True, layout=wr.Layout(w=WIDE // 2, h=8)),
    ]


def _media() -> list[Any]:
    """A row a kind, a column a trial."""
    import wandb_workspaces.reports.v2 as wr

    return [
        wr.MediaBrowser(title=key, media_keys=[key], mode="gallery", gallery_axis="run", layout=wr.Layout(w=WIDE, h=8))
        for key in MEDIA
    ]


def _curves(keys: Sequence[str], *, x: str) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    return [wr.LinePlot(title=key, x=x, y=[key]) for key in keys]


def _final(metric: str) -> str:
    """Where the summary of a trial's W&B run holds a result."""
    return f"final/{metric}"


def _leaf(key: str) -> str:
    return key.rpartition(".")[2]


def _write(path: Path, workspace: Any) -> None:
    plain = json.loads(workspace._to_model().model_dump_json())
    try:
        path.write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise SweepError(f"cannot write {path}: {error.strerror}; choose another --out.") from error
    print(f"workspace    {path}")


def _save(workspace: Any) -> None:
    try:
        workspace.save()
    except Exception as error:  # whatever W&B raises is said in one line
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise SweepError(f"W&B did not save the workspace: {line}") from error


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="sweeps/dashboard.py", description="The W&B workspace of a sweep.")
    parser.add_argument("name", metavar="NAME", help="the sweep")
    parser.add_argument("--storage", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the workspace there")
    parser.add_argument("--project", default=os.environ.get("WANDB_PROJECT", PROJECT), help=f"default: {PROJECT}")
    parser.add_argument(
        "--entity", default=os.environ.get("WANDB_ENTITY"), help="user or team on W&B; with it and a key it is saved"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
