"""Which recordings are held out together."""

from __future__ import annotations

from .data import Labels

#: Groups of similar Linux attacks: family-out leaves all recordings of a group out.
ATTACK_FAMILY = {
    "brute_miner": "brute",
    "webshell": "remote-shell",
    "cmdi_python": "remote-shell",
    "nc_fifo": "remote-shell",
    "suid_privesc": "privilege",
    "sudo_gtfo": "privilege",
    "ldpreload": "privilege",
    "cron_beacon": "implant",
    "b64_dropper": "implant",
    "masquerade": "implant",
    "cred_harvest": "credentials",
    "log_wipe": "credentials",
    "ransom": "ransom",
    "lateral": "lateral",
}

#: (name, recordings tested, recordings trained on)
Fold = tuple[str, list[str], list[str]]


def by_family(labels: dict[str, Labels]) -> list[Fold]:
    """Leave one family out."""
    out = []
    for family in sorted({l.family for l in labels.values()}):
        test = [r for r, l in labels.items() if l.family == family]
        out.append((family, test, [r for r in labels if r not in test]))
    return out


def by_attack(labels: dict[str, Labels], group=lambda attack: attack) -> list[Fold]:
    """One fold a recording; every recording that shares a (group of) attack with it is left out too."""
    out = []
    for r, l in labels.items():
        mine = {group(a) for a in l.attacks}
        train = [q for q, k in labels.items() if q != r and not mine & {group(a) for a in k.attacks}]
        out.append((r, [r], train))
    return out


def by_component(labels: dict[str, Labels]) -> list[Fold]:
    """Few folds: recordings linked by shared attacks stay together, benign ones are dealt out among them."""
    groups: list[set[str]] = []
    for r, l in labels.items():
        if not l.attacks:
            continue
        linked = [g for g in groups if any(set(labels[q].attacks) & set(l.attacks) for q in g)]
        groups = [g for g in groups if g not in linked] + [set().union({r}, *linked)]
    groups.sort(key=lambda g: sorted(g))
    for i, r in enumerate(r for r, l in labels.items() if not l.attacks):
        groups[i % len(groups)].add(r)
    return [(f"part {i + 1}", sorted(g), [r for r in labels if r not in g]) for i, g in enumerate(groups)]
