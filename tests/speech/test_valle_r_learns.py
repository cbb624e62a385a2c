"""On a toy language VALL-E R learns to speak every phoneme once, and the pointer is what it owes that to.

Each phoneme has an onset code and three codes that sustain it, so that what was said can be read off the codes: one
phoneme for each onset. Frames at the full rate; merged by two, each pair of frames has one code.
"""

import statistics
import time

import pytest
import torch
from longtake.speech.valle_r.ar import AR, objective
from longtake.speech.valle_r.decode import Limits, Sampling, Spoken, chosen, decode
from longtake.speech.valle_r.network import size_of

PHONEMES, EACH, NOISE = 20, 4, 0.02
LIMITS = Limits(vowel=8, consonant=8)
SAMPLING = Sampling(top_p=0.8)


def utterance(text, generator, rate=1):
    """Codes and pointer of phonemes (from 1), ``rate`` codes for what merging makes one."""
    codes, pointer = [], []
    for at, phoneme in enumerate(text):
        count = int(torch.randint(2, 6, (), generator=generator))
        tail = torch.randint(1, EACH, (count - 1,), generator=generator).tolist()
        said = [EACH * (phoneme - 1) + code for code in (0, *tail)]
        for place in range(1, count):
            if float(torch.rand((), generator=generator)) < NOISE:
                other = int(torch.randint(PHONEMES, (), generator=generator))
                said[place] = EACH * other + 1
        codes += [code if k == 0 or code % EACH else code + 1 for code in said for k in range(rate)]
        pointer += [at] * (count * rate)
    return codes, pointer


def texts(count, generator, low=4, high=10, doubled=0.25):
    found = []
    for _ in range(count):
        text = []
        for _ in range(int(torch.randint(low, high + 1, (), generator=generator))):
            again = text and float(torch.rand((), generator=generator)) < doubled
            text.append(text[-1] if again else 1 + int(torch.randint(PHONEMES, (), generator=generator)))
        found.append(text)
    return found


def pad(rows):
    size = max(map(len, rows))
    return torch.tensor([row + [0] * (size - len(row)) for row in rows]), torch.tensor([len(row) for row in rows])


def trained(steps=200, rate=1, **config):
    """A model of the test preset that has learned the language."""
    torch.manual_seed(0)
    model = AR(size_of("test"), symbols=PHONEMES + 1, entries=PHONEMES * EACH, dropout=0.0, **config)
    generator = torch.Generator().manual_seed(1)
    pool = []
    for text in texts(600, generator):
        pool.append((text, *utterance(text, generator, rate)))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.15)
    model.train()
    for _ in range(steps):
        rows = [pool[int(at)] for at in torch.randint(len(pool), (24,), generator=generator)]
        text, many = pad([row[0] for row in rows])
        codes, frames = pad([row[1] for row in rows])
        pointer, _ = pad([row[2] for row in rows])
        loss = objective(model, model, None, text, many, codes, pointer, frames)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def heard(codes):
    """The phonemes that codes say: one for each onset."""
    return [code // EACH + 1 for code in codes if code % EACH == 0]


def distance(said, meant):
    row = list(range(len(meant) + 1))
    for i, one in enumerate(said, 1):
        before, row = row, [i]
        for j, other in enumerate(meant, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (one != other)))
    return row[-1]


def free(model, text, generator):
    """The same weights without the rule: the phoneme of a frame is any of the text's, drawn by its logit, and the end
    may come at any time."""
    text = torch.tensor(text)
    whole = text[None]
    cache = model.cache(len(text) + 1 + LIMITS.budget * len(text))
    with torch.no_grad():
        said, moved = model(whole, torch.tensor([[model.begin]]), torch.tensor([[0]]), cache=cache)
        said, moved = said[:, -1], moved[:, -1]
        codes, pointer, here = [], [], 0
        while len(codes) < LIMITS.budget * len(text):
            code = chosen(said[0], SAMPLING, generator, codes, False)
            if code == model.end:
                break
            codes.append(code)
            pointer.append(here)
            here = int(torch.multinomial(moved[0][text].softmax(0), 1, generator=generator))
            said, moved = model.step(
                cache, whole, torch.tensor([code]), torch.tensor([here]), torch.tensor([len(codes)]), None
            )
    return Spoken(torch.tensor(codes, dtype=torch.int64), torch.tensor(pointer, dtype=torch.int64))


def ruled(model, text, generator):
    """As the library decodes: every phoneme in order, none left out."""
    spoken = decode(model, torch.tensor(text), generator=generator, sampling=SAMPLING, limits=LIMITS)
    assert spoken.pointer[-1] == len(text) - 1 and set(spoken.pointer.diff().tolist()) <= {0, 1}
    return spoken


class Tally:
    """What a model says of texts: how often it errs, the seconds of the processor of each text, and all frames."""

    def __init__(self, model, way=ruled):
        self.model, self.way, self.generator = model, way, torch.Generator().manual_seed(5)
        self.wrong, self.many, self.frames, self.seconds = 0, 0, 0, []

    def add(self, text):
        start = time.process_time()
        spoken = self.way(self.model, text, self.generator)
        self.seconds.append(time.process_time() - start)
        self.wrong += distance(heard(spoken.codes.tolist()), text)
        self.many += len(text)
        self.frames += len(spoken.codes)

    @property
    def rate(self):
        """Phoneme error rate."""
        return self.wrong / self.many


def error_rate(model, cases, way=ruled):
    tally = Tally(model, way)
    for text in cases:
        tally.add(text)
    return tally.rate


@pytest.fixture(scope="module")
def models():
    """Ours merged and unmerged, and one with the paper's pointer."""
    ours = {"pointer": "stay_go", "lead": 1, "place": True, "dwell": 8}
    return {
        "stay_go": trained(**ours),
        "unmerged": trained(rate=2, **ours),
        "identity": trained(**{**ours, "pointer": "identity"}),
    }


@pytest.mark.slow
def test_b1_phonemes_come_once_and_without_the_rule_they_do_not(models):
    generator = torch.Generator().manual_seed(9)
    usual, hard = texts(40, generator), texts(12, generator, low=9, doubled=0.0)  # without the rule each is endless
    rate = error_rate(models["stay_go"], usual)
    kept = error_rate(models["identity"], hard)
    unruled = error_rate(models["identity"], hard, way=free)
    print(f"usual {rate:.3f}; identity on long texts {kept:.3f}, without the rule {unruled:.3f}")
    assert rate <= 0.02 and kept < unruled


@pytest.mark.slow
def test_b2_merging_halves_the_steps_and_the_time(models):
    cases = texts(30, torch.Generator().manual_seed(9))
    merged, full = Tally(models["stay_go"]), Tally(models["unmerged"])
    for case in cases:  # in turns, so that what else the machine does falls on both
        merged.add(case)
        full.add(case)
    ratio = statistics.median(ours / theirs for ours, theirs in zip(merged.seconds, full.seconds, strict=True))
    steps = merged.frames / full.frames
    print(f"steps {steps:.3f}, seconds {ratio:.3f}; errors merged {merged.rate:.3f}, unmerged {full.rate:.3f}")
    assert 0.4 < steps < 0.6 and ratio <= 0.7 and merged.rate <= full.rate + 0.01


@pytest.mark.slow
def test_b3_doubled_phonemes_are_no_coin_flip_for_stay_and_go(models):
    cases = texts(30, torch.Generator().manual_seed(9), doubled=0.5)
    ours = error_rate(models["stay_go"], cases)
    paper = error_rate(models["identity"], cases)
    print(f"doubled phonemes: stay_go {ours:.3f}, identity {paper:.3f}")
    assert ours <= paper
