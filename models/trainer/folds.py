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


def unlike(more: dict[str, Labels], tested: list[Labels]) -> list[str]:
    """Those of `more` that share no group of attacks with what is tested: they may train."""
    groups = {family_of(a) for l in tested for a in l.attacks}
    return [r for r, l in more.items() if not groups & {family_of(a) for a in l.attacks}]

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


def splits(platform: str, labels: dict[str, Labels]) -> dict[str, list[Fold]]:
    """The ways of leaving out that a platform is judged by. The last is the strictest: calibration rests on it."""
    if platform == "windows":
        return {"family-out": by_family(labels)}
    return {"type-out": by_attack(labels), "family-out": by_attack(labels, family_of)}
