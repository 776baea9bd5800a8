"""Lines of text to print on pictures: words, names, prices, dates, codes, phrases, receipts.

Promises: at most `longest` characters, printable in every face of demo/fonts, much of it unguessable (made-up words,
codes), so that a model has to read. Random strings leave out the letters that look the same in a sans face (I, l, O).
Does not know: sizes, places, colours."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

# ruff: noqa: SIM905 - a list of hundreds of words is read as running text, not as a literal with a word a line

LONGEST = 22
_HEAD = 16  # of a receipt

WORDS = """
    about above across action after again agree album alone amber angle animal answer apple april arrive august
    autumn awake badge bakery balance banana basket beach before begin berry better bicycle birthday biscuit blanket
    bloom board boat book border bottle branch bread breeze bridge bright brother bucket butter button cabin camera
    candle canyon captain carbon carpet castle center chair change cheese cherry chicken circle city clever climb
    clock cloud coast coffee comet cookie copper corner cotton country crayon cream crystal current dance danger
    deliver desert dinner distant doctor dolphin donkey door dragon dream driver eagle early earth east echo eight
    elbow empty engine enjoy evening every exact exit express fabric family farmer father feather ferry festival
    field figure finger finish flame flight flower follow forest fossil fragile freedom fresh friday friend frozen
    fruit future galaxy garden gentle ghost ginger glass globe golden grape gravel great green guitar hammer handle
    happy harbor harvest helmet hidden hill holiday honey horizon horse hotel hour house hundred hungry iceberg idea
    island ivory jacket january jewel journey juice july jungle kettle keyboard kitchen kitten ladder lake language
    lantern large laugh leather lemon letter library light lion little lobster local london lucky lunch machine
    magnet mango maple marble market matrix meadow melody memory message metal midnight milk minute mirror monday
    money month morning mother mountain museum music nature needle never night north notice number ocean office
    olive onion open orange orchard order oxygen oyster paper parade parcel parking peace pencil pepper perfect
    piano picnic pilot planet platform plenty pocket poem police polite potato powder present price private promise
    public pumpkin puzzle quality quarter queen question quick quiet rabbit radio railway rainbow ranger ready
    record remote report return ribbon river rocket roof sailor salad sale sample sandwich saturday school season
    second secret service seven shadow sharp shelter shore silence silver simple sister sketch smooth snow soccer
    special spice spring square station stone storm story street student sugar summer sunday sunset supper surprise
    sweet switch table tailor taxi teacher temple thank theater thunder thursday ticket tiger timber today tomato
    tomorrow tower traffic train travel treasure tulip tunnel turtle twelve twenty umbrella uncle uniform unique
    valley vanilla velvet village violin visit voice volcano voyage waffle wagon water weather wednesday weekend
    welcome west whisper wild window winter wisdom wizard wonder wooden yellow yogurt young zebra zero café crème
    fête garçon jalapeño mañana münchen straße schön grün über señor piñata façade naïve
""".split()
FIRST_NAMES = """
    Adam Agnes Alice Amir Anna Astrid Bella Boris Bruno Carla Chloe Clara Daniel David Diego Elena Elif Emil Emma
    Eric Fatima Felix Finn Frida George Grace Greta Hana Hannah Hugo Ines Ivan Jack Jana Jonas Julia Karim Kate Lars
    Laura Leo Lina Lucas Maja Marco Maria Mateo Max Mia Mila Nadia Nina Noah Olga Oliver Omar Oscar Paula Pedro
    Petra Quentin Rosa Ruth Sami Sara Simon Sofia Tara Theo Tom Uma Vera Victor Wendy Yuki Zara Zoe José Chloé René
    Jürgen Zoë
""".split()
LAST_NAMES = """
    Adler Ahmed Bauer Becker Bell Berg Brown Castro Chen Clarke Costa Diaz Dubois Evans Fischer Ford Garcia Grant
    Gruber Hall Hansen Hoffman Hughes Ivanov Jansen Jones Kaya Keller King Klein Kovacs Larsen Lee Lopez Martin
    Meyer Moreau Morris Nagy Nielsen Novak Olsen Park Patel Perez Petit Quinn Reed Rossi Ruiz Sato Silva Singh Smith
    Stone Tanaka Taylor Turner Vogel Wagner Walker Weber White Wolf Wong Wright Yang Young Zimmer Müller Núñez Weiß
    Öztürk
""".split()
MONTHS = "January February March April May June July August September October November December".split()
GOODS = """
    Apples Bagel Bananas Bread Butter Cake Candles Carrots Cheese Cocoa Coffee Cookies Eggs Espresso Flour Grapes
    Honey Jam Juice Lemons Milk Muffin Mushrooms Noodles Oil Olives Onions Pasta Pears Pepper Pizza Plums Rice Salad
    Salt Soap Soup Stamps Sugar Tea Toast Tomatoes Tuna Vinegar Water Wine Yogurt
""".split()
SHOPS = "Bakery Bistro Books Café Corner Deli Garden Grocery Hardware Kiosk Market Pharmacy Shop Store Toys".split()

_ONSETS = """
    b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gl gr kl kr pl pr qu sh sk sl sn sp st str th tr
""".split()
_VOWELS = "a e i o u a e i o u ai ea ee ia oa oo ou y".split()
_CODAS = ["", "", "", *"b ck d f g k l m n p r s t x z ld ll nd ng nk nt rd rk rm rn rt sh ss st th".split()]
_CAPITALS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_SMALL = "abcdefghijkmnopqrstuvwxyz"
_DIGITS = "0123456789"


def _of(rng: Random, alphabet: str, number: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(number))


def made_up(rng: Random) -> str:
    """A word that can be said but that nobody has heard, so nothing but its letters tells it."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((1, 2, 2, 2, 3)))
    )


def _some_word(rng: Random) -> str:
    return made_up(rng) if rng.random() < 0.45 else rng.choice(WORDS)


def upper(text: str) -> str:
    """Capitals; ß stays as it is, it has none that a reader would expect."""
    return "ß".join(part.upper() for part in text.split("ß"))


def words(rng: Random) -> str:
    chosen = [_some_word(rng) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
    form = rng.random()
    if form < 0.35:
        return " ".join(chosen)
    if form < 0.6:
        return " ".join(word.capitalize() for word in chosen)
    if form < 0.75:
        return " ".join(chosen).capitalize()
    return upper(" ".join(chosen))


def name(rng: Random) -> str:
    first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
    form = rng.random()
    if form < 0.4:
        return f"{first} {last}"
    if form < 0.55:
        return f"{first[0]}. {last}"
    if form < 0.7:
        return f"{last}, {first}"
    if form < 0.85:
        return f"{rng.choice(('Dr.', 'Mr.', 'Mrs.', 'Ms.', 'Prof.'))} {last}"
    return f"{last} & {rng.choice(('Sons', 'Co.', rng.choice(LAST_NAMES)))}"


def amount(rng: Random) -> str:
    return f"{rng.choice((rng.randrange(10), rng.randrange(100), rng.randrange(1000)))}.{rng.randrange(100):02d}"


def price(rng: Random) -> str:
    value = amount(rng)
    return rng.choice(
        (f"${value}", f"€{value}", f"£{value}", f"€ {value}", f"{value.replace('.', ',')} €", f"{value} $")
    )


def date(rng: Random) -> str:
    year, month, day = rng.randrange(1950, 2040), rng.randrange(1, 13), rng.randrange(1, 29)
    long = MONTHS[month - 1]
    return rng.choice(
        (
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d}.{month:02d}.{year}",
            f"{month:02d}/{day:02d}/{year}",
            f"{day} {long} {year}",
            f"{long[:3]} {day}, {year}",
            f"{long} {day}",
            f"{rng.randrange(24):02d}:{rng.randrange(60):02d}",
            f"{rng.randrange(1, 13)}:{rng.randrange(60):02d} {rng.choice(('am', 'pm'))}",
        )
    )


def code(rng: Random) -> str:
    return rng.choice(
        (
            f"{_of(rng, _CAPITALS, 2)}-{_of(rng, _DIGITS, 4)}",
            f"{_of(rng, _CAPITALS, 3)} {_of(rng, _DIGITS, 3)} {_of(rng, _CAPITALS, 1)}",
            f"#{_of(rng, _DIGITS, rng.randrange(3, 7))}",
            _of(rng, _CAPITALS + "23456789", rng.randrange(4, 9)),
            _of(rng, _CAPITALS, rng.randrange(3, 8)),
            _of(rng, _SMALL, rng.randrange(3, 8)),
            f"{_of(rng, _SMALL, 3)}_{_of(rng, _DIGITS, 2)}",
            f"+{_of(rng, _DIGITS, 2)} {_of(rng, _DIGITS, 3)} {_of(rng, _DIGITS, 4)}",
            f"{_of(rng, _DIGITS, 4)} {_of(rng, _DIGITS, 4)}",
            f"{_of(rng, _DIGITS, 2)}/{_of(rng, _DIGITS, 3)}-{_of(rng, _CAPITALS, 1)}",
            _of(rng, _DIGITS, rng.randrange(2, 9)),
        )
    )


def phrase(rng: Random) -> str:
    one, two, number = _some_word(rng), _some_word(rng), rng.randrange(1, 100)
    return rng.choice(
        (
            f"Hello, {rng.choice(FIRST_NAMES)}!",
            f"{one.capitalize()}, {two}!",
            f"{one.capitalize()}?",
            f'"{one.capitalize()}"',
            f"({one} {two})",
            f"{number}% off",
            f"No. {number}",
            f"Room {rng.randrange(100, 999)}",
            f"Gate {_of(rng, _CAPITALS, 1)}{number}",
            f"{one.capitalize()} & {two.capitalize()}",
            f"{one}@{two}.com",
            f"www.{one}.org",
            f"{one}: {number}",
            f"{one}; {two}.",
            f"{number} x {one}",
            f"{number} + {rng.randrange(1, 100)} = ?",
            f"{one.capitalize()}'s {two}",
            f"[{upper(one)}]",
            f"{one}/{two}",
            f"{number}° {one}",
            f"*{one}*",
            f"Open {number % 12}-{number % 7 + 12}",
            f"Dear {rng.choice(FIRST_NAMES)},",
            f"{one}-{two}",
        )
    )


_MAKERS: tuple[tuple[Callable[[Random], str], int], ...] = (
    (words, 34),
    (name, 14),
    (price, 10),
    (date, 12),
    (code, 16),
    (phrase, 20),
)


def line(rng: Random, longest: int = LONGEST) -> str:
    """One line of some kind, at most `longest` characters (at least 3 are needed)."""
    makers, weights = zip(*_MAKERS, strict=True)
    for _ in range(20):
        text: str = rng.choices(makers, weights)[0](rng)
        if len(text) <= longest:
            return text
    return _of(rng, _CAPITALS, min(longest, 5))


def receipt(rng: Random) -> list[tuple[str, str]]:
    """Shop, two or three items, total: (left, right) pairs; read as "left right", the shop's line has no right part."""
    title = ""
    while not 0 < len(title) <= _HEAD:
        shop = rng.choice((rng.choice(LAST_NAMES), made_up(rng).capitalize()))
        title = f"{shop} {rng.choice(SHOPS)}"
    sign = rng.choice(("$", "€", "£", ""))
    cents = [rng.randrange(50, rng.choice((500, 2500, 10000))) for _ in range(rng.choice((2, 3)))]
    rows = [
        (rng.choice(GOODS) if rng.random() < 0.8 else made_up(rng).capitalize(), f"{c // 100}.{c % 100:02d}")
        for c in cents
    ]
    total = sum(cents)
    head = upper(title) if rng.random() < 0.4 else title
    return [
        (head, ""),
        *rows,
        (rng.choice(("TOTAL", "Total", "Sum")), f"{sign}{total // 100}.{total % 100:02d}"),
    ]
