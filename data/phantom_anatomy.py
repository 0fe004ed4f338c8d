"""Anatomy of the phantom's three echocardiographic views: outlines, normal flow, valves that may leak.

Lengths are fractions of the imaging depth: the probe sits at (0, 0), x points to the right, y points down.
Outlines are written as "x,y x,y …" in thousandths of the depth, several strokes with ";" between them.
"""

from __future__ import annotations

from dataclasses import dataclass

NAMES = ("AR", "MR", "PR", "TR")  # aortic, mitral, pulmonary, tricuspid regurgitation
# parasternal short axis at the great vessels, parasternal long axis, apical four chamber
VIEWS = ("PSAX", "PLAX", "A4C")
SYSTOLE, DIASTOLE = 0, 1


@dataclass(frozen=True)
class Flow:
    """Normal flow: from where to where, width (thousandths of the depth), peak speed in Nyquist units."""

    path: str
    width: int
    speed: float


@dataclass(frozen=True)
class Jet:
    """A valve that may leak: from its orifice to where the jet ends, the chamber that receives it and when."""

    name: str
    path: str
    width: int
    chamber: str
    phase: int
    share: float  # of the view's clips


@dataclass(frozen=True)
class View:
    """Anatomy of one view: closed outlines (heart, chambers), open strokes (leaflets by phase, strong reflectors)."""

    heart: str
    chambers: dict[str, str]
    systole: str
    diastole: str
    bright: str
    flows: tuple[tuple[Flow, ...], tuple[Flow, ...]]
    jets: tuple[Jet, ...]


_PLAX = View(
    heart="-420,520 -320,320 -60,200 200,170 400,240 440,460 360,720 120,800 -160,770 -360,680",
    chambers={
        "RV": "-290,340 -120,245 80,215 170,250 60,295 -120,325 -260,380",
        "LV": "-360,540 -280,440 -120,400 30,400 40,500 20,610 -120,660 -280,635",
        "AO": "20,395 90,325 190,325 400,270 420,370 220,430 100,475 30,465",
        "LA": "30,560 120,510 260,480 350,550 330,680 200,745 80,710 30,640",
        "DA": "210,865 198,893 170,905 142,893 130,865 142,837 170,825 198,837",
    },
    systole="60,495 20,530 -10,575; 30,650 0,610 -10,575; 50,370 140,365; 70,480 160,455",
    diastole="60,495 -30,480 -100,500; 30,650 -30,635 -80,620; 50,370 90,425; 70,480 90,425",
    bright="-360,700 -160,785 120,815 350,740",
    flows=(
        (Flow("-140,480 380,340", 70, 0.9), Flow("300,520 160,660", 70, 0.45)),
        (Flow("140,600 -260,500", 80, 0.9), Flow("-180,310 80,250", 40, 0.5)),
    ),
    jets=(
        Jet("AR", "70,430 -220,530", 80, "LV", DIASTOLE, 0.6),
        Jet("MR", "0,580 250,640", 85, "LA", SYSTOLE, 0.4),
    ),
)
_A4C = View(
    heart="0,170 180,220 320,420 350,620 320,820 150,910 -120,900 -310,800 -350,580 -280,360 -140,210",
    chambers={
        "LV": "70,240 150,280 220,380 255,500 245,600 130,620 30,605 30,480 30,330",
        "RV": "-80,330 -40,380 -35,500 -40,575 -140,590 -250,575 -260,500 -200,390 -130,320",
        "LA": "40,635 130,615 235,635 270,720 230,820 130,850 40,820 18,720",
        "RA": "-50,605 -150,585 -245,610 -280,700 -240,800 -140,830 -50,800 -18,710",
    },
    systole="30,615 80,598 135,605; 245,620 190,598 135,605; -40,585 -90,570 -145,578; -255,590 -200,570 -145,578",
    diastole="30,615 65,550 80,500; 245,620 215,560 205,520; -40,585 -70,530 -80,480; -255,590 -225,540 -210,500",
    bright="300,360 350,500 370,660; -120,930 100,945 260,880",
    flows=(
        (Flow("120,400 50,600", 70, 0.8), Flow("200,800 120,680", 70, 0.45)),
        (Flow("140,740 120,340", 90, 0.9), Flow("-140,720 -130,420", 80, 0.7)),
    ),
    jets=(
        Jet("MR", "135,605 150,830", 85, "LA", SYSTOLE, 0.5),
        Jet("TR", "-145,580 -130,800", 85, "RA", SYSTOLE, 0.5),
    ),
)
_PSAX = View(
    heart="-50,180 150,190 310,320 350,520 300,740 80,830 -140,800 -330,680 -360,460 -250,280",
    chambers={
        "RV": "-230,420 -210,320 -80,235 60,230 170,290 215,380 130,410 90,355 0,330 -90,350 -130,420 -170,460",
        "PA": "125,405 210,380 245,480 255,580 300,690 245,720 195,650 130,690 100,640 155,570 140,490",
        "RA": "-230,430 -150,460 -115,530 -100,610 -140,690 -230,700 -300,610 -290,500",
        "LA": "-80,610 0,585 70,610 90,690 50,760 -50,770 -100,710",
        "AO": "90,460 64,524 0,550 -64,524 -90,460 -64,396 0,370 64,396",
    },
    systole="-225,425 -178,452; -125,455 -178,452; 125,410 145,460; 210,380 220,440; -52,432 0,520 52,432 -52,432",
    diastole=(
        "-225,425 -215,370; -125,455 -145,385; 125,410 172,420; 210,380 172,420; 0,460 0,545; 0,460 -75,410; "
        "0,460 75,410"
    ),
    bright="-200,800 -20,850 180,820",
    flows=(
        (Flow("-100,300 140,310", 60, 0.6), Flow("160,360 210,660", 70, 0.95), Flow("0,420 0,500", 50, 0.4)),
        (Flow("-200,600 -150,320", 80, 0.8), Flow("0,730 0,640", 60, 0.4)),
    ),
    jets=(
        Jet("PR", "172,415 50,270", 80, "RV", DIASTOLE, 0.55),
        Jet("TR", "-178,450 -210,660", 85, "RA", SYSTOLE, 0.35),
        Jet("AR", "-35,440 40,480", 70, "AO", DIASTOLE, 0.1),
    ),
)
ANATOMY = {"PSAX": _PSAX, "PLAX": _PLAX, "A4C": _A4C}
