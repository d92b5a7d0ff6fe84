"""State_dicts that former versions of the library wrote, in the present form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from braintools_optim.options.types import Tree

__all__ = ['upgraded']

OF_MUON = {'momentum', 'nesterov', 'ns_coefficients', 'adjust_lr_fn', 'eps', 'algorithm'}
OF_ADAMW = {'adamw_betas': 'betas', 'adamw_eps': 'eps'}


def upgraded(state: Mapping[str, Tree]) -> Mapping[str, Tree]:
    """Return a state_dict in the present form. Muon's groups of AdamW once had the options of Muon."""
    if state['optimizer'] != 'Muon' or 'algorithms' in state:
        return state
    by_adamw = [group.get('algorithm') == 'adamw' for group in state['param_groups']]
    groups = []
    for group, is_adamw in zip(state['param_groups'], by_adamw, strict=True):
        names = new_names(group, is_adamw)
        own = sorted(new_names(group['own'], is_adamw).values())
        groups.append({**{names[name]: value for name, value in group.items() if name in names}, 'own': own})
    values = {}
    for path, array in state['states'].get('settings.values', {}).items():
        part, *rest = path.split('.')
        index = int(rest.pop(0)) if part == 'groups' else None
        names = new_names(rest[:1], index is not None and by_adamw[index])
        if rest[0] in names:
            place = [part] if index is None else [part, str(index)]
            values['.'.join([*place, names[rest[0]], *rest[1:]])] = array
    return {
        **state,
        'algorithms': ['AdamW' if is_adamw else '' for is_adamw in by_adamw],
        'param_groups': groups,
        'states': {**state['states'], 'settings.values': values},
    }


def new_names(names: Iterable[str], is_adamw: bool) -> dict[str, str]:
    """Return the present names of options of a group of Muon or AdamW by their former names, if they remain."""
    if is_adamw:
        return {name: OF_ADAMW.get(name, name) for name in names if name not in OF_MUON}
    return {name: name for name in names if name not in OF_ADAMW and name != 'algorithm'}
