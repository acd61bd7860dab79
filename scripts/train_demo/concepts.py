"""What the demo checkpoint can draw: CLDR names of emoji, and the objects that come in colours."""

from __future__ import annotations

FACES = """
grinning face; face with tears of joy; smiling face with heart-eyes; smiling face with sunglasses;
winking face; sleeping face; loudly crying face; enraged face; thinking face; nerd face;
partying face; cowboy hat face; cold face; star-struck; smiling face with horns; skull; clown face;
ghost; alien; robot; jack-o-lantern; face with medical mask; red heart; broken heart
"""

ANIMALS = """
monkey face; gorilla; dog face; poodle; wolf; fox; raccoon; cat face; black cat; lion; tiger face;
horse face; horse; unicorn; zebra; deer; cow face; cow; pig face; camel; llama; giraffe; elephant;
rhinoceros; hippopotamus; mouse face; mouse; hamster; rabbit face; rabbit; hedgehog; bat; bear;
polar bear; koala; panda; sloth; kangaroo; paw prints; rooster; baby chick; bird; penguin; eagle;
duck; swan; owl; flamingo; peacock; parrot; frog; crocodile; turtle; lizard; snake; dragon face;
sauropod; T-Rex; spouting whale; dolphin; tropical fish; blowfish; shark; octopus; spiral shell;
crab; lobster; shrimp; snail; butterfly; ant; honeybee; lady beetle; spider
"""

PLANTS = """
cherry blossom; rose; hibiscus; sunflower; tulip; bouquet; seedling; potted plant;
evergreen tree; deciduous tree; palm tree; cactus; four leaf clover; maple leaf; mushroom
"""

FOOD = """
grapes; melon; watermelon; tangerine; lemon; banana; pineapple; mango; red apple; green apple; pear;
peach; cherries; strawberry; blueberries; kiwi fruit; tomato; coconut; avocado; eggplant; potato;
carrot; ear of corn; hot pepper; bell pepper; cucumber; broccoli; garlic; onion; bread; croissant;
pretzel; bagel; pancakes; waffle; cheese wedge; meat on bone; poultry leg; bacon; hamburger;
french fries; pizza; hot dog; sandwich; taco; egg; popcorn; rice ball; sushi; fried shrimp;
ice cream; soft ice cream; doughnut; cookie; birthday cake; shortcake; cupcake; chocolate bar;
candy; lollipop; custard; glass of milk; hot beverage; teapot; wine glass; cocktail glass;
beer mug; bubble tea
"""

PLACES = """
snow-capped mountain; volcano; beach with umbrella; desert island; house; castle; church; tent;
ferris wheel; circus tent; locomotive; high-speed train; bus; ambulance; fire engine; police car;
taxi; automobile; delivery truck; tractor; racing car; motorcycle; motor scooter; bicycle;
skateboard; roller skate; vertical traffic light; stop sign; anchor; sailboat; speedboat; ship;
airplane; helicopter; parachute; rocket; flying saucer; hourglass done; watch; alarm clock;
full moon; crescent moon; sun; ringed planet; star; cloud; cloud with rain; tornado; rainbow;
umbrella; high voltage; snowflake; snowman; fire; droplet; globe showing Europe-Africa
"""

THINGS = """
Christmas tree; balloon; party popper; wrapped gift; trophy; sports medal; soccer ball; basketball;
tennis; american football; bowling; boxing glove; bullseye; kite; pool 8 ball; crystal ball;
video game; game die; puzzle piece; teddy bear; artist palette; glasses; sunglasses; necktie;
t-shirt; jeans; socks; dress; handbag; backpack; running shoe; high-heeled shoe; crown; top hat;
billed cap; ring; gem stone; lipstick; bell; megaphone; microphone; headphone; radio; saxophone;
trumpet; guitar; violin; drum; mobile phone; telephone; battery; laptop; floppy disk; television;
camera; candle; light bulb; red paper lantern; closed book; open book; money bag; envelope;
package; postbox; pencil; paintbrush; briefcase; calendar; pushpin; scissors; locked; key; hammer;
axe; dagger; crossed swords; bomb; shield; wrench; gear; magnet; ladder; test tube; microscope;
telescope; syringe; pill; door; bed; chair; toilet; broom; bucket; soap; shopping cart; moai
"""

LABELS: tuple[str, ...] = tuple(
    label.strip()
    for block in (FACES, ANIMALS, PLANTS, FOOD, PLACES, THINGS)
    for label in block.replace("\n", " ").split(";")
)

# The concepts a short training is spent on; the others are seen rarely until there is more time.
CORE: frozenset[str] = frozenset(
    label.strip()
    for label in """
grinning face; face with tears of joy; smiling face with heart-eyes; smiling face with sunglasses;
enraged face; loudly crying face; skull; ghost; alien; robot; jack-o-lantern; red heart; broken heart;
monkey face; dog face; fox; cat face; lion; tiger face; horse face; unicorn; zebra; cow face; pig face;
giraffe; elephant; mouse face; rabbit face; bear; polar bear; koala; panda; paw prints; rooster;
baby chick; bird; penguin; duck; owl; flamingo; parrot; frog; turtle; snake; spouting whale; dolphin;
tropical fish; shark; octopus; crab; snail; butterfly; honeybee; lady beetle; spider;
cherry blossom; rose; sunflower; tulip; potted plant; evergreen tree; deciduous tree; palm tree;
cactus; four leaf clover; maple leaf; mushroom; grapes; watermelon; tangerine; lemon; banana;
pineapple; red apple; green apple; pear; peach; cherries; strawberry; tomato; avocado; eggplant;
carrot; ear of corn; bell pepper; broccoli; bread; croissant; pretzel; cheese wedge; hamburger;
french fries; pizza; hot dog; egg; sushi; ice cream; doughnut; cookie; birthday cake; cupcake;
lollipop; glass of milk; hot beverage; teapot; wine glass; beer mug; snow-capped mountain; volcano;
house; castle; tent; bus; ambulance; fire engine; police car; taxi; automobile; tractor; racing car;
bicycle; vertical traffic light; stop sign; anchor; sailboat; ship; airplane; helicopter; rocket;
flying saucer; hourglass done; alarm clock; full moon; crescent moon; sun; ringed planet; star; cloud;
cloud with rain; rainbow; umbrella; high voltage; snowflake; snowman; fire; droplet;
globe showing Europe-Africa; Christmas tree; balloon; wrapped gift; trophy; soccer ball; basketball;
tennis; bullseye; pool 8 ball; game die; teddy bear; glasses; sunglasses; necktie; t-shirt; jeans;
dress; backpack; crown; top hat; billed cap; ring; gem stone; bell; microphone; headphone; trumpet;
guitar; drum; mobile phone; telephone; laptop; television; camera; candle; light bulb; closed book;
open book; money bag; envelope; package; pencil; scissors; locked; key; hammer; axe; bomb; shield;
magnet; pill; door; chair
""".replace("\n", " ").split(";")
)

# What people ask for first, and what the demo and the card show: seen most often.
FAVOURITES: frozenset[str] = frozenset(
    label.strip()
    for label in """
red apple; cat face; rocket; dog face; panda; pizza; sunflower; red heart; automobile; balloon; butterfly;
guitar; penguin; birthday cake; house; smiling face with sunglasses; rainbow; sailboat; lion; octopus;
bicycle; umbrella; robot; rose; tiger face; fox; frog; owl; unicorn; strawberry; hamburger; grinning face;
star; smiling face with heart-eyes
""".replace("\n", " ").split(";")
)

# Common words for a label; the first is what colour captions use.
ALIASES: dict[str, tuple[str, ...]] = {
    "cat face": ("cat",),
    "dog face": ("dog",),
    "monkey face": ("monkey",),
    "tiger face": ("tiger",),
    "pig face": ("pig",),
    "dragon face": ("dragon",),
    "pizza": ("slice of pizza",),
    "rabbit face": ("bunny",),
    "red heart": ("heart",),
    "red apple": ("apple",),
    "automobile": ("car",),
    "closed book": ("book",),
    "tropical fish": ("fish",),
    "billed cap": ("cap", "baseball cap"),
    "wrapped gift": ("gift", "present"),
    "gem stone": ("gem", "diamond"),
    "spouting whale": ("whale",),
    "lady beetle": ("ladybug",),
    "honeybee": ("bee",),
    "hamburger": ("burger",),
    "doughnut": ("donut",),
    "hot beverage": ("cup of coffee", "coffee"),
    "beer mug": ("beer",),
    "wine glass": ("glass of red wine",),
    "cocktail glass": ("cocktail",),
    "cheese wedge": ("cheese",),
    "ear of corn": ("corn",),
    "hot pepper": ("chili pepper",),
    "globe showing Europe-Africa": ("planet earth", "earth globe"),
    "ringed planet": ("saturn", "planet with a ring"),
    "hourglass done": ("hourglass",),
    "high voltage": ("lightning bolt",),
    "droplet": ("water drop",),
    "vertical traffic light": ("traffic light",),
    "flying saucer": ("ufo",),
    "locomotive": ("steam train",),
    "high-speed train": ("train",),
    "fire engine": ("fire truck",),
    "delivery truck": ("truck",),
    "motor scooter": ("scooter",),
    "sauropod": ("dinosaur",),
    "T-Rex": ("tyrannosaurus",),
    "sports medal": ("gold medal", "medal"),
    "tennis": ("tennis ball",),
    "game die": ("dice",),
    "running shoe": ("sneaker",),
    "mobile phone": ("smartphone",),
    "locked": ("padlock",),
    "package": ("cardboard box",),
    "enraged face": ("angry red face",),
    "grinning face": ("happy face", "smiley"),
    "loudly crying face": ("crying face",),
    "smiling face with horns": ("purple devil face",),
    "smiling face with sunglasses": ("cool face",),
    "evergreen tree": ("pine tree",),
    "deciduous tree": ("tree",),
    "snow-capped mountain": ("mountain",),
    "poultry leg": ("chicken leg",),
    "moai": ("stone head",),
    "billiard ball": ("pool ball",),
    "sun": ("sunshine",),
    "star": ("yellow star",),
    "headphone": ("headphones",),
    "envelope": ("letter",),
    "microphone": ("mic",),
    "soccer ball": ("football",),
}

# Single-coloured things, recoloured to teach the colour words: label -> noun.
COLOURED: dict[str, str] = {
    "red heart": "heart",
    "red apple": "apple",
    "automobile": "car",
    "balloon": "balloon",
    "closed book": "book",
    "t-shirt": "t-shirt",
    "dress": "dress",
    "butterfly": "butterfly",
    "tropical fish": "fish",
    "bird": "bird",
    "rose": "rose",
    "tulip": "tulip",
    "mushroom": "mushroom",
    "billed cap": "cap",
    "star": "star",
    "gem stone": "gem",
    "bell pepper": "bell pepper",
    "house": "house",
    "rocket": "rocket",
    "bus": "bus",
}

# Colour word -> hue in turns, saturation factor, exponent on value (below 1 brightens).
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.99, 1.0, 1.0),
    "orange": (0.075, 1.0, 0.6),
    "yellow": (0.135, 1.0, 0.3),
    "green": (0.33, 0.9, 0.9),
    "blue": (0.60, 1.0, 1.0),
    "purple": (0.76, 0.85, 0.9),
    "pink": (0.92, 0.6, 0.4),
}

# Colour pairs kept out of the data, to see whether the words combine.
HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("green", "heart"),
        ("blue", "apple"),
        ("purple", "car"),
        ("orange", "balloon"),
        ("pink", "book"),
        ("yellow", "t-shirt"),
        ("red", "dress"),
        ("green", "fish"),
        ("yellow", "tulip"),
        ("blue", "mushroom"),
        ("green", "cap"),
        ("purple", "star"),
    }
)

# Style word -> the package its drawings come from.
STYLES: dict[str, str] = {
    "noto": "@iconify-json/noto",
    "twemoji": "@iconify-json/twemoji",
    "fluent": "@iconify-json/fluent-emoji-flat",
}
# What a caption without a style word draws; the other styles come when their name is said.
MAIN_STYLE = "fluent"
NAMES_PACKAGE = "emojibase-data"
