"""Searching: networks drawn by a small generator, trained one by one, the best of them or a front of them kept."""

from solvers.errors import InputError

try:
    import optuna as _  # noqa: F401
except ImportError as lacking:
    raise InputError(
        f"a sweep needs Optuna, which cannot be imported ({lacking}): pip install 'neuralosc[sweep]' (in a checkout "
        "'.[sweep]')"
    ) from lacking
