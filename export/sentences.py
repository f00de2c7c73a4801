"""English sentences to compare two implementations on: real text, no more than that.

From The World Factbook (public domain), one sentence a country or so.
"""

from __future__ import annotations

from typing import Final

_TEXT: Final = """
Bantu-speaking people settled in the area now called Angola in 6th century A.D.; by the 10th century various
Bantu groups had established kingdoms, of which Kongo became the most powerful.

Chad has faced widespread poverty, an economy severely weakened by volatile international oil prices,
terrorist-led insurgencies in the Lake Chad Basin, and several waves of rebellions in northern and eastern
Chad.

The Central African Republic (CAR) is a perennially weak state that sits at the crossroads of ethnic and
linguistic groups in the center of the African continent.

Gabon, a sparsely populated country known for its dense rainforests and vast petroleum reserves, is one of the
most prosperous and stable countries in central Africa.

With 28 ethnic groups and languages, Liberia is one of the most ethnically diverse countries in the world.

Mauritius gained independence from the UK in 1968 as a Parliamentary Republic and has remained a stable
democracy with regular free elections and a positive human rights record.

South Sudan, which gained independence from Sudan in 2011, is the world’s newest country.

The Zulu kingdom's territory was incorporated into the British Empire after the Anglo-Zulu War in 1879, and
the Afrikaner republics were incorporated after their defeat in the Second South African War (1899-1902).

Despite those positive moves, political reconciliation has moved slowly, and the country experiences periodic
outbursts of protests from frustrated citizens, leading to violence between security forces and protesters.

The country achieved independence from France in 1960 and changed its name to Burkina Faso in 1984.

British explorers were the first Europeans to see Cartier Island and Ashmore Reef in 1800 and 1811,
respectively.

On four occasions in the 1950s and 1960s, voters opted for integration with Guam, which Guam rejected in 1969.

These people became the indigenous Chamorro and were influenced by later migrations, including the
Micronesians in the first millennium A.D., and island Southeast Asians around 900.

With growing financial troubles during the 2000s, Australia abolished the Norfolk Island Legislative Assembly
in 2015, reduced Norfolk Island’s autonomy in 2016, and suspended the local council in 2020.

Polynesians were the first settlers on the four tiny islands that are now called the Pitcairn Islands, but all
four were uninhabited by the time Europeans discovered them in 1606.

Tonga regained full control of domestic and foreign affairs and became a fully independent nation within the
Commonwealth in 1970.

Wallis and Futuna was the only French colony to side with the Vichy regime during World War II, until the
arrival of Free French and US troops in 1942.

The Taino — indigenous inhabitants of Hispaniola prior to the arrival of Europeans — divided the island now
known as the Dominican Republic and Haiti into five chiefdoms and territories.

Kitts first settled on Montserrat in 1632; the first African slaves arrived three decades later.

Since gaining its independence in 1991, Azerbaijan has significantly reduced the poverty rate and has directed
some revenue from its oil and gas production to develop the country’s infrastructure.

Founded in the 12th century, the Principality of Muscovy emerged from over 200 years of Mongol domination
(13th-15th centuries) and gradually conquered and absorbed surrounding principalities.

Burma is home to ethnic Burmans and scores of other ethnic and religious minority groups that have resisted
external efforts to consolidate control of the country throughout its history.

At the same time, dozens of civil society groups and several independent media outlets were closed or
disbanded.

Malaysia’s location has long made it an important cultural, economic, historical, social, and trade link
between the islands of Southeast Asia and the mainland.

Following a bloodless revolution in 1932 that led to the establishment of a constitutional monarchy,
Thailand's political history was marked by a series of mostly bloodless coups with power concentrated among
military and bureaucratic elites.

The March states were a series of buffer states to keep the Muslim Moors from advancing into Christian France.

A former British colony, Cyprus became independent in 1960 after years of resistance to British rule.

Celtic tribes arrived in Ireland between 600 and 150 B.C.

As Europe's largest economy and second most-populous nation (after Russia), Germany is a key member of the
continent's economic, political, and defense organizations.

This desolate, mountainous island in the Arctic Ocean was named after a Dutch whaling captain who indisputably
discovered it in 1614 (earlier claims are inconclusive).

The use of the name Crna Gora or Black Mountain (Montenegro) began in the 13th century in reference to a
highland region in the Serbian province of Zeta.

The principalities of Wallachia and Moldavia — for centuries under the control of the Turkish Ottoman Empire —
secured their autonomy through the Treaty of Paris in 1856.
"""

SENTENCES: Final = tuple(" ".join(paragraph.split()) for paragraph in _TEXT.strip().split("\n\n"))
"""One string each; 20 to 56 tokens in the tokenizers in use."""
