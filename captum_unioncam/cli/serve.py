"""``captum-unioncam app``."""

from contextlib import suppress
from time import sleep
from typing import Annotated

import typer

from captum_unioncam.cli import options
from captum_unioncam.cli.shared import settings_of, tell_of_download


def serve(
    model: options.ModelOption = "demo",
    weights: options.WeightsOption = None,
    device: options.DeviceOption = None,
    quality: options.QualityOption = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, metavar="N", help="Port.", show_default="a free one from 7860 on")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Serve the web app: an image, a network, and the maps of several methods. Ctrl-C ends it.

    Visitors choose among the given network, the demo model and torchvision's, and may change the quality.
    """
    typer.echo("loading PyTorch and Gradio ...", err=True)
    from captum_unioncam.app.page import served
    from captum_unioncam.app.workbench import Workbench

    workbench = Workbench(model, weights, device, str(quality or "exact"))
    tell_of_download(settings_of({"model": model, "weights": weights}))
    typer.echo(f"loading {model}, and computing the example of the first screen ...", err=True)
    with suppress(KeyboardInterrupt), served(workbench, host, port) as address:
        typer.echo(f"{address} (Ctrl-C ends it)")
        if open_it:
            typer.launch(address)
        while True:
            # Windows does not interrupt a wait without a limit.
            sleep(1)
