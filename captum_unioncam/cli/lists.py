"""``captum-unioncam methods`` and ``captum-unioncam metrics``."""

import typer


def methods() -> None:
    """List the methods by name."""
    from captum_unioncam.methods.registry import describe, names

    for name in names():
        typer.echo(f"{name}: {describe(name)}".rstrip(": "))
    typer.echo("torchcam:NAME, grad_cam:NAME: any CAM of those packages, such as torchcam:LayerCAM")
    typer.echo("package.module:function: a factory of your own, as captum_unioncam.methods.register takes it")


def metrics() -> None:
    """List the metrics by name, with what each measures."""
    from captum_unioncam.metrics.table import all_metrics

    for name, metric in all_metrics().items():
        better = "larger is better" if metric.larger_is_better else "smaller is better"
        on_request = " On request." if metric.on_request else ""
        typer.echo(f"{name}: {better}. {metric.description or metric.title}{on_request}")
