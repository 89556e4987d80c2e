"""``captum-unioncam sanity``."""

import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from captum_unioncam.cli import options
from captum_unioncam.cli.shared import (
    check_folder,
    complain,
    methods_in,
    opened,
    settings_of,
    tell_of_download,
)
from captum_unioncam.system.errors import Failure
from captum_unioncam.system.files import FreeNames, make_folder
from captum_unioncam.system.versions import package_versions

Order = StrEnum("Order", ["cascading", "independent", "both"])


@options.with_model_options
def sanity(
    context: typer.Context,
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="Image file.", show_default="the demo image")
    ] = None,
    methods: options.MethodsOption = "union_cam, denoised_grad_cam, score_cam, grad_cam, guided_grad_cam, saliency",
    target: options.TargetOption = None,
    order: Annotated[
        Order,
        typer.Option(
            help="cascading: all layers from the output down to each are reinitialised. independent: each alone."
        ),
    ] = Order.cascading,
    max_layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Compare maps for at most N layers, evenly spread; a cascade also initialises those between.",
            show_default="all",
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Seed of new weights, of the other class, and of methods that draw random numbers."
        ),
    ] = 0,
    output: options.OutputOption = Path("sanity"),
    **_model_options: Any,
) -> None:
    """Check that methods' maps depend on the model and on the class.

    Layers of a copy of the model are reinitialised, from the output down, and each method's map is compared with the
    one before, and with that of another class, drawn at random: by SSIM and by rank correlation. Small values are good.

    Writes the similarities (csv), the same with the settings (json), and a plot (png).
    """
    from captum_unioncam.engine.randomization import ORDERS
    from captum_unioncam.evaluation.explain import demo_note, is_photo
    from captum_unioncam.evaluation.sanity import check_sanity
    from captum_unioncam.methods.registry import PEER_PACKAGES
    from captum_unioncam.report.panels import png
    from captum_unioncam.report.sanity import randomization_plot, sanity_text

    check_folder(output)
    method_names = methods_in(methods)
    name, stem, picture = opened(image)
    settings = settings_of(context.params, image is not None)
    on_terminal = sys.stderr.isatty()
    tell_of_download(settings)
    subject = settings.subject(on_terminal)
    class_index = None if target is None else subject.class_index(target)
    make_folder(output)
    if note := demo_note(settings, is_photo(picture)):
        typer.echo(f"Note: {note}", err=True)
    orders = ORDERS if order is Order.both else (str(order),)
    how: dict[str, Any] = {"orders": orders, "max_layers": max_layers, "seed": seed}
    given = subject, method_names, name, picture, class_index
    checks = check_sanity(*given, settings=settings.of_methods(), show_progress=on_terminal, **how)
    if checks.rows:
        used = {**asdict(settings), "layer": subject.layer_name, "device": str(subject.device), **how}
        del used["method"]
        contents = {
            "png": png(randomization_plot(checks.rows)),
            "csv": checks.csv(),
            "json": checks.json({**used, "versions": package_versions(*PEER_PACKAGES)}),
        }
        paths = FreeNames(output, taken=[] if image is None else [image]).write(stem, [checks.class_name], contents)
        typer.echo(f"{name}: {checks.class_name}; layer {checks.layer}\n")
        typer.echo(sanity_text(checks.rows))
        typer.echo(f"\n{', '.join(map(str, paths))}")
    for method, problem in checks.failures.items():
        complain(Failure(f"{method}: {problem}"))
    if checks.failures:
        raise typer.Exit(1)
