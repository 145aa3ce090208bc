"""`sid models`: the models of a folder."""

from service.commands.options import ModelsOption, settings_from


def list_models(models: ModelsOption = None) -> None:
    """List the models of a folder, and which of them is the default."""
    from rich.console import Console
    from rich.table import Table

    from service.bundle import describe_signature, list_bundles, load_manifest
    from service.serving.catalogue import trusted_keys
    from service.serving.default_model import choose_default, stated_default

    settings = settings_from(models=models)
    folders = list_bundles(settings.models)
    names = [folder.name for folder in folders]
    default = choose_default(names, stated_default(settings, names))
    table = Table("name", "version", "size", "steps", "classes", "licence", "description", box=None)
    trusted = trusted_keys(settings)
    signers = [describe_signature(folder, trusted) for folder in folders]
    shows_signers = trusted is not None or any(signer != "-" for signer in signers)
    if shows_signers:
        table.add_column("signed by")
    for column in table.columns[:4]:  # what is short stays on one line, and can be searched for
        column.no_wrap = True
    for folder, signer in zip(folders, signers, strict=True):
        manifest = load_manifest(folder)
        table.add_row(
            f"{manifest.name} (default)" if manifest.name == default else manifest.name,
            str(manifest.version),
            "x".join(str(size) for size in manifest.image_shape),
            str(manifest.steps),
            ", ".join(manifest.classes) or "-",
            manifest.licence,
            manifest.description,
            *([signer] if shows_signers else []),
        )
    Console().print(table)
