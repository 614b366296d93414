"""A run in MLflow: where it is recorded, and in which experiment, is what MLflow's own variables say."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cnsn_cli.training.metrics import Epoch
from cnsn_cli.training.run_folder import PLOT, RECIPE
from cnsn_cli.training.trackers.tracking import TrackedRun

TAG = "cnsn.run"


@contextmanager
def mlflow(run: TrackedRun) -> Iterator[Callable[[object], None]]:
    """Log settings as parameters and every epoch as a step. A resumed run goes on in its MLflow run.

    MLflow cannot take a number back: an epoch that was logged before is not logged again.
    """
    import mlflow

    with _quiet():
        found = mlflow.search_runs(filter_string=f"tags.`{TAG}` = '{run.id}'", output_format="list")
        before = found[0].info.run_id if found else None
        started = mlflow.start_run(before, run_name=run.folder.name, tags={TAG: run.id}, nested=True)
    with started:
        own = started.info.run_id
        if before is None:
            mlflow.log_params(dict(run.settings))
        history = mlflow.MlflowClient().get_metric_history(own, "lr")
        logged = max((point.step for point in history), default=0)

        def log(event: object) -> None:
            if isinstance(event, Epoch) and event.epoch > logged:
                mlflow.log_metrics(event.numbers(), step=event.epoch, run_id=own)

        yield log
        for name in (RECIPE, PLOT):
            mlflow.log_artifact(str(run.folder / name))


@contextmanager
def _quiet() -> Iterator[None]:
    """MLflow opens its store here, and the database library warns about MLflow's tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
