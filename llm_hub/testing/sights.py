"""Images for the rules of vision, as bytes of files: a page with known words, one without any, and a shape as a JPEG."""

from __future__ import annotations

import base64

__all__ = ["BLANK", "CIRCLE_JPEG", "PAGE", "PAGE_SIZE", "PAGE_WORDS"]

# Drawn with Pillow in the typeface Aileron (CC0), 34 px, black on white.
PAGE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAlgAAAD6AgMAAAAAQ9GDAAAADFBMVEX////Kyso9PT0AAAC1eliZAAALX0lEQVR42u2dT2wb2X3HP48ckt7VYeagAloJWO"
    "rgHtY9KM0xCZYv6al7KQu48nZtFETRHgotVip6K5Bw3GMuKwSxfMlBB2+axgHMU9ugSDjcopdeMj7Ui2I3MNHKWnstYCfARBLJGf5yeMN/kvyHpulq0fe5"
    "DD18b+ar937z5s38+L4Gi8VisVgsFovFYrFYLBaLxWKxfFVJRx/dMPuQjye38yd3PhtnTFZFRCSY+Lbkv+TTPe8Bn95aF6pnd+8LR8bEAZ+CM/p4b/3SPR"
    "7/4lx04pisx7crarIPOW685NO90AEr+mlXYvriV2I6+5W43NWw+WggbKXrhrDxCDeXwMYjUHdukY/Jxyz3Nap5a1DLvXvnFhT729mnjQ7AZlbVvXvnFm44"
    "KjRdazUlpCSiwQ3dUIn8KswfimhXkvyhiKYsoo2surQpSwookRj3E+lr6hLjfiopSsSHoojvSoLZ54bup5JCXeIpZXU2Y8oPNkMjq9S5+mWYP3rQDAvp5f"
    "zRg2ZI/aM7YT4mH6v+1WPqN5oaSt33Utz7N5q+6q+nuPd3RJc6m21wH2yGhfQyZp8buvd3RKv+ejqdLAlLx9R1KTayyqGSMC+63CYlL7rcVn0W4nxMPs4d"
    "q1SllEMot2lqN6XcLsXUtZtS9xfapRjW/IU2KeCm1H03dFPqfimmrqeLra2uw9tBN7tEvYb40A8eemC2qsuR+VIl0lJHPPTA22VLc8TDReczdjVH7Gon6j"
    "ngBYlnDnXErs42ptBUsgKU+iaSyar6NECykUTAKRzTLwwK/6xwQOJB1add5YCes9gg0iTggTRAB0l2KLOPBDxTaBpZgqASaGX9ChEkJNmRE5xo8KU47DgR"
    "4kAFEg8QxwtIPCIiEk/ehevDI0dEg40pNJ2sk/+MyERl2wjMqCtFPVYswZw2kwDJG6arL4/tY7zQtPdEtSCSnVGfeV9QRkvr5zhrkmbFPECU1xxc+73iHq"
    "B++ZPTJxgVmsfE5lqx/ZRv+1srPixXfjbbPXGMw9pz1dxv/DH3/BP9vg498+lmteZz8Qd/95vTlUeFppAlcnt0XXIiNpNRAMqV46R3OytGBCiJVAAuAN1r"
    "v4b6d/KnTxCdnBM8dydmgarOCIxRxHVbgKqCGvyBCVAYfP25c+oSGlLQU8sSB5UFaut0a3lQARxe3yX4lkdxF1rgRHgoIs2ymYJe8kWBPqtDRoWmklVAZW"
    "NC4HNiQtm7QK4nDoukVYJkESeChs9qg0UKx1EVz/TQb7U8KU5GhabqxJYuJIMDqBN/lhR5LaFAleQCfrPAYgRRje2A11hqJ4tUzRmj1ZxAi8XTx08WqQbf"
    "nXIamLJmZhB7brjQuXrfzBdo/jCbznx0J0R2jmLVX09pjs0gvrzR9HP99RQ3xA1Lnasx1G/8W0zzh5h9buiGuGGuv54+MeqeLMsMpwuJG+ZEPsxk1ROzLY"
    "toNuV/Y+pyzNrYfOtT6UNTYiNBibRhTQ5j6smkLJoSv4AsdWcPKCZuyEbHzWStZLJUcw+K/T+KWe5vU2xuA6z0Ne7d5i1Y7msjgY2uhmL/B8esnJS13Nd8"
    "d4aB/G+gHDxn2eHcf/5P1b/H4Mb8f/VU/YRrEu8cvgxY26bJq+/EZ1HuXE3PoayiyB7nL+S77/eu2Zd+FovFYrFYLJZzSGX08mfOidjzn31d07Bwtw1PSZ"
    "K+eWrPSoxJRy1Pk12a5tnLB/ffY/MMc+ZTTEUPu3HYic0YyuaVyPHLewIaa61I84yXYWc9sGmgttPyc5Urxbm01kIIa9/OOvEJrfXmyZDfPIpRKeWwFFP3"
    "59FaiQdecxWg86TY+p+TO6o/AnXEgeccPCO7NIusSj5mo4MbRmsBG4+g8k7bvMFSzW0TXe909cZDTCIWulugEhLPiYg8UHf2iNYCNh9ButzVg/dfMyiM4R"
    "f5WIn4bigSlERCKpvtshwDZUmp6IqubMpdEZ3/rcg2UMvHlNqUIvM6jZL0MXU1aV32KA+vhBdsrSzTVexu1aB2z1/64v2L8CdbtZtFoLbzsemjd7Z+fz/Q"
    "5Pa3qsAuIIFpay+Cpf2WX7vnL+1vbcPfX1vE1J6FBHWcjxfapdgN3ZC6n0up7PFL6hqVshZUdEVX2iXR5TAvunQ8iv2Fdhbya345dEOTvpVQ9U3tmUb5Fi"
    "oBkzQFKn6/BQdUaGjUEZ+tAtDuSXDg0Q+6hVFVJ+q+vl73wQsOPMjSt1tyXVdovIAsZ1LWAZikKai34bqWBvAYCgeDpGJg3hD3kNao6mpD/jDsmC8CMOlb"
    "CWj8KTxm1tZyIEuagkog0gS02PdxzPmAAMkUjsmqBmqbAyDS3Rqj9G2kW+z7s8mKtBMNk6ajdGprGyCiX5sMxDHU94LiN3L/DUR/NXYNjWrPKKsxSJpmuT"
    "ENND7Qk509eM8fDIOm2GPpE/lLHw5WthlL30Ze4wM9sywvGCRNx/hE/euzjrL0EK/BQRUOgw+YtvYzZCWeB3AzmOgtuu8/c+Sp7YJJ1stV5QOH6+vvPnft"
    "Z8pyA6B7bWnYVQHATsufDKUMPZhuqLqPh8k87m/VQOT27dsAXsROa8aQT6gAJmlqxg7PxNKWBg9VPVF3mEsqdsf2/shUytK3gak9iyxZrDBImpp7kRdA7i"
    "dEHgkUt08MeHostIiACH5K4gzStwo8U3s2Wc63GCVN5WOoByCXiQCTZR1RQL09Hlr4OMB/mRR7AZWgNNX65ef7PcbTZKmEQdIUaPm5CiA5ViN6r3GxMVFR"
    "F4/HQotolYsRBP6FhEH6dlt9T3Ks/mb6p6SJRPJ/fB04fuPPjyF5S+/+5+MjgOs3Lvn0P75x6TrVO6NA/Oj7B8NR68/o/cub6//0bWj/9Zft5C39t//8/c"
    "+Qt97rcf3GpX/4+WxTiHqbfKxE2m5YGsy3tHmAYE06rEUVXdEqodTOH4r42QzCFZFINaUDlET8kgQLIpq0KW3K0s8nsz0nBhEg7/dq0A3obHW/BvB58GPg"
    "k+AmB2Nl+1tfTFz4clVuAt3GF3434LDxIIBrvRqfBz/uH3OemOH3s+f/qdrKsrL+P8iyWCwWi8VisVgsFovFYrFYLBaLxWKxWCwWi8VisVgsFovFMk/OXu"
    "j6hLWVL4Wvwi8p57V8dTZZ6oH64GQ/MdMvpl+KrNe7V9T2+Wutizd/+rXq+ZA1vujhw+/w2dK5ay31Nhw5pH/gq2ZmDhytBWOOw8ZjeKU7MGiDgbvwXBXG"
    "oFLSpl8emAOLBIw5Dmeed78Kh/ZxKluRMcfWyhwM1TeC2s7HWtWvvEbtns9h/13UfrCdrX4tdq+tjuqYhbJzZaENgGwPl2/rbIAwjsOZx3CoZNRaxl14vl"
    "diZDYNdcRDb8IcuB889AYew43xbhsulJ37zUeCwgHJpDmwgDPyGG5MFG/MWZYzkOBEQwfhjMxxOFt5HY3qDBbKzre1XDn7TjO2rEkmZb3x6mYQzpqkp82B"
    "xzyGRwwWys5RVgKHV6asfmqh7BxuPh692/8IGDfhU+bAkx7DWdzdrNb8+cpKvGzVctK7DWsjB+Hs66HHsDe2t3vt1/PuRGdkNKyqnGEOnHkMT/D5vMctuZ"
    "A1XuJR3D1lDpwMPYa9UScOFsrOUVY/B0sAySJOdMocOPMYDnyqJF7mRzxYKDvPAeL6Nn8BIAUWo5GD8KAxM4/hqvJhUZkOHi6UnSPlznvHKSk0bzR1rr+e"
    "stDRDB2HjcewsSLuX70funvunnEXni9FkXZKinETbkpMSQKGjsNmOM2JfBiqpnwYLiQLiXEXnjMbXZ2SYtxUzH96ETB0HM48VjY6bshKxw2LSTEx7sLngG"
    "msiF/hU/WrsSKeWlbrq29F/AqZxor4FTKNFfGr5LwMCRaLxWKxWCwWi8VisVgsllfK7wCL4W8hcFTWtwAAAABJRU5ErkJggg=="
)
"""A PNG file of three lines of English, the last of them apart from the others."""

PAGE_SIZE = (600, 250)

PAGE_WORDS = (
    ("The", (40, 37, 101, 63), 0),
    ("lighthouse", (108, 37, 272, 70), 0),
    ("opens", (279, 44, 376, 70), 0),
    ("at", (383, 40, 412, 63), 0),
    ("nine.", (419, 39, 494, 63), 0),
    ("Visitors", (40, 89, 150, 113), 1),
    ("climb", (157, 87, 241, 113), 1),
    ("128", (248, 89, 308, 113), 1),
    ("steps.", (315, 90, 405, 120), 1),
    ("Greet", (40, 189, 126, 213), 2),
    ("the", (133, 187, 184, 213), 2),
    ("gulls", (191, 187, 264, 220), 2),
)
"""The words on PAGE, each with the box in which it was drawn and the number of its line."""

BLANK = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAASwAAADIAQAAAAB6pOH4AAAANElEQVR42u3KMQEAAAQAMPQvKwEV/LZ7OXHQFSeapmmapmmapmmapmmapmmapmmapmnat7"
    "bUwQOA6VGW+wAAAABJRU5ErkJggg=="
)
"""A PNG file of a white page."""

CIRCLE_JPEG = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABQODxIPDRQSEBIXFRQYHjIhHhwcHj0sLiQySUBMS0dARkVQWnNiUFVtVkVGZIhlbXd7gYKBTmCNl4x9lnN+gX"
    "z/2wBDARUXFx4aHjshITt8U0ZTfHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHx8fHz/wAARCAA4ADgDASIAAhEBAxEB"
    "/8QAGgABAQEAAwEAAAAAAAAAAAAAAAUGAQIEB//EADQQAAIBAgIGBgkFAAAAAAAAAAABAgMEBhEFEiExQYETFTVUYbEiI1FScXORodGCk6Kywf/EABkBAA"
    "MBAQEAAAAAAAAAAAAAAAADBAUCAf/EAB0RAAMAAgMBAQAAAAAAAAAAAAABAgMRBBIhMUH/2gAMAwEAAhEDEQA/ANmAAAAgaQxEqVV07OEKmq9tSW1P4JeZ"
    "L690j3j+EfwLeRIrjh5KW/hswZuyxJPXjC9hFweSdSCya8WuPLI0cZRnFSi1KLWaaeaaOlSr4JyYbxPVHIAOhQIGJb+pSULSk3HXjrTftW5L7PMvmM0/2x"
    "cfp/qheR6RXw4VZPfwngAnNkFzDd/UjcKzm3KnNNwXuvf9N/PmQz0aO7RtfnQ80ey9MVmhXDTN2ACswAZvE9lLpIXcI5wa1ajS3Pg35ckaQ4lGM4uMkpRa"
    "yaazTRzS7LQ3DkeK+yPnoLmkMPVo1XOxSnTb2QcsnH6719/Ml9X3ndK/7b/BM5aNqM0WtpnnK+HbKVe9VeUfVUdubWacuC/3kLLD91XnGVwuhpbG836TXg"
    "uHM1NGjToUo0qUVCEVkkhkQ97ZLyeTKnrPrZ3AA8ygAAAAAAAAAAAAA//Z"
)
"""A JPEG file of a red circle on a white background."""
