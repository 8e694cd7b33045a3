"""Other names, the same everywhere; everything else stays."""

import json
import unittest

from trainer.scramble import Scramble

LABEL = {
    "id": "r",
    "family": "f",
    "techniques": ["T1"],
    "hosts": [{"host": "ws5", "attack_intervals": [["2020-09-01T00:00:00Z", "2020-09-01T00:01:00Z"]]}],
    "benign_intervals": [],
}


class ScrambleTest(unittest.TestCase):
    def test_names_and_dates_change_alike(self):
        line = json.dumps({"@timestamp": "2020-09-01T00:00:30.000Z", "host": "WS5", "User": "CORP\\ann", "Image": "C:\\Users\\ann\\payload.exe", "m": "audit(1598918430.1:2)"})
        s = Scramble(LABEL, [line])
        got, label = json.loads(s.text(line)), s.label(LABEL)
        for old in ("ws5", "corp", "ann\\", "payload", "2020-09-01"):
            self.assertNotIn(old, json.dumps(got).lower())
        self.assertEqual(got["host"].lower(), label["hosts"][0]["host"])
        self.assertEqual(got["@timestamp"][:10], label["hosts"][0]["attack_intervals"][0][0][:10])
        self.assertTrue(got["Image"].startswith("C:\\Users\\") and got["Image"].endswith(".exe"))
        days = (int(got["m"][6:16]) - 1598918430) / 86_400
        self.assertEqual(days, s.days)
        self.assertEqual((label["id"], label["family"]), ("r", "f"))

    def test_what_every_system_has_stays(self):
        line = '{"User": "NT AUTHORITY\\\\SYSTEM", "Image": "C:\\\\Windows\\\\System32\\\\cmd.exe"}'
        self.assertEqual(Scramble(LABEL, [line]).text(line), line)


if __name__ == "__main__":
    unittest.main()
