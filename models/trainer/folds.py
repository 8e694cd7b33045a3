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
    # Emulations of models/data/.
    "dropper": "implant",
    "command_injection": "remote-shell",
}


def family_of(attack: str) -> str:
    """The group of an attack or of a variant of it (`cron_beacon_service`); itself where it is in none."""
    known = [name for name in ATTACK_FAMILY if attack == name or attack.startswith(f"{name}_")]
    return ATTACK_FAMILY[max(known, key=len)] if known else attack


#: (name, recordings tested, recordings trained on)
Fold = tuple[str, list[str], list[str]]


def by_family(labels: dict[str, Labels]) -> list[Fold]:
    """Leave one family out."""
    groups: dict[str, list[str]] = {}
    for recording, l in labels.items():
        groups.setdefault(l.family, []).append(recording)
    return [(name, test, [r for r in labels if r not in test]) for name, test in sorted(groups.items())]


def by_attack(labels: dict[str, Labels], group=lambda attack: attack) -> list[Fold]:
    """Every recording that shares a (group of) attack with a tested one is left out; benign ones are dealt out."""
    mine = {r: frozenset(group(a) for a in l.attacks) for r, l in sorted(labels.items())}
    alike: dict[frozenset, list[str]] = {}
    for r in mine:
        if mine[r]:
            alike.setdefault(frozenset(q for q in mine if mine[q] & mine[r]), []).append(r)
    out = []
    benign = [r for r in mine if not mine[r]]
    for k, (left_out, tested) in enumerate(sorted(alike.items(), key=lambda pair: pair[1])):
        clean = benign[k :: len(alike)]
        out.append(("+".join(tested), tested + clean, [r for r in mine if r not in left_out and r not in clean]))
    return out


def with_own(parts: list[Fold], labels: dict[str, Labels], own: dict[str, Labels]) -> list[Fold]:
    """The same folds with recordings of one's own: they are dealt out among them, like the corpus' benign recordings. But an
    attack does not train where one of its group is tested, and is tested in the first such fold."""

    def groups(of: list[Labels]) -> set[str]:
        return {family_of(a) for l in of for a in l.attacks}

    tested = [groups([labels[r] for r in test]) for _, test, _ in parts]
    like = {r: [k for k, those in enumerate(tested) if those & groups([own[r]])] for r in sorted(own)}
    dealt = [r for r in like if not like[r]]
    out = []
    for k, (name, test, train) in enumerate(parts):
        mine = dealt[k :: len(parts)] + [r for r in like if like[r][:1] == [k]]
        out.append((name, test + mine, train + [r for r in like if r not in mine and k not in like[r]]))
    return out


def splits(platform: str, labels: dict[str, Labels]) -> dict[str, list[Fold]]:
    """The ways of leaving out that a platform is judged by. The last is the strictest: calibration rests on it."""
    if platform == "windows":
        return {"family-out": by_family(labels)}
    return {"type-out": by_attack(labels), "family-out": by_attack(labels, family_of)}
