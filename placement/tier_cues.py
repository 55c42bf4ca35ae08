# ruff: noqa: RUF001 - letters of other alphabets
"""Words that name a task, in many languages; beginnings of words as `placement.tier_features` cuts them.

They carry what the classifier learns from one language's prompts over to the others.
"""

from collections.abc import Mapping
from types import MappingProxyType

_WORDS = {
    "translate": """translate translation übersetze übersetzung traduis traduire traduisez traduction traduce
        traducir traduzca traduzir traduz traduza tradução traduci tradurre traduzione vertaal vertaling
        przetłumacz tłumaczenie переведи переведите перевод переклади переклад 翻译 翻譯 翻訳 訳し 번역 ترجم
        ترجمة अनुवाद çevir çeviri tercüme dịch terjemahkan översätt oversett käännä přelož omsett překlad""",
    "language": """english german french spanish portuguese italian chinese japanese korean russian arabic hindi
        dutch polish swedish turkish danish romanian finnish englisch englische französisch spanisch anglais
        allemand espagnol inglés alemán inglês inglese tedesco engels angielski английский англійською 英文 中文
        英語 日本語 영어 الإنجليزية अंग्रेज़ी ingilizce inggris engelska engelsk englanniksi angličtiny""",
    "extract": """extract extraction extrahiere extrahieren extrais extraire extraits extrae extraer extraiga
        extraia extrair estrai estrarre haal wypisz wyodrębnij извлеки извлеките выпиши випиши 提取 抽取 找出
        抽出 抜き 추출 찾아 استخرج निकालें çıkar trích sebutkan poimi vyber identify identifiziere identifie
        identifica finde pull highlight find entities entity entità entidades entitäten redact anonymise
        anonymize parse""",
    "list": "list liste lista listar auflisten enumere énumère enumera elenca lijst listez 列出 列举 挙げ 나열",
    "classify": """classify classification categorize categorise category categories label tag klassifiziere
        ordne kategorie classe classer catégorie catégories clasifica categoría classifique classifica categoria
        categorie sentiment polarity spam toxic hateful intent stance sentimiento sentimento sentyment opinii
        polariteten тональность отзыва классифицируй 分类 情感 正面 分類 肯定 否定 분류 긍정 부정 صنف إيجابي
        सकारात्मक olumlu olumsuz positiv positive positif positivo negative negativ négatif negativo neutral
        bewertung avis reseña recensie""",
    "correct": """correct correction fix proofread spelling grammar typos punctuation korrigiere rechtschreibung
        corrige corriger orthographe ortografía corrija gramática correggi errori verbeter popraw исправь
        исправьте ошибки 改正 错别 校对 誤字 直し 맞춤 صحح ठीक düzelt rätta oprav korjaa""",
    "rewrite": """rewrite rephrase paraphrase reformulate reword formuliere umformulieren reformule reformuler
        reescribe reescreva riscrivi riformula herschrijf перефразируй 改写 改寫 書き換 言い 바꿔 convert
        konvertiere reformat sort replace lowercase uppercase umwandeln convertis convierte converta""",
    "summary": """summarize summarise summary summaries tldr synopsis abstract recap condense digest gist
        overview takeaways zusammenfassung zusammen fasse résume résumez résumé resumir resume resumen resuma
        resumo riassumi riassunto sintesi resum samenvatting samen vat streść streszczenie кратко резюме изложи
        стисло 总结 概括 摘要 總結 要約 まとめ 요약 لخص ملخص सारांश özetle özet tóm ringkas ringkasan
        sammanfatta oppsummer oppsummering tiivistä shrň samandrag sammendrag headline minutes outline bullet
        takeaway key""",
    "compare": """compare comparison contrast differences similarities combine merge vergleiche vergleich
        compara comparer vergelijk porównaj сравни 比较 異同 比較 비교 قارن तुलना karşılaştır bandingkan jämför""",
    "context": """context passage paragraph article document documents text texts excerpt transcript reference
        story dialogue conversation report sources source following below above given according kontext kontexte
        contexte contexto contesto konteksti konteks contesto bağlam texte texto testo tekst tekstu article
        articolo artículo artikel artikeln статьи текст текста тексту контекст контексту 文章 下面 材料 资料
        以下 語境 语境 上文 次の 記事 本文 다음 글에 맥락 기사 النص السياق المقال संदर्भ पाठ लेख प्रसंग metin
        metni haberi bối đoạn bài teks artikkeli článek""",
    "why": """why warum weshalb wieso pourquoi perché dlaczego почему зачем чому 为什么 為什 为何 なぜ どうし 왜
        لماذا क्यों neden niçin tại sao mengapa kenapa varför hvorfor miksi proč waarom reason reasons because""",
    "explain": """explain explanation describe discuss analyse analyze argue evaluate critique justify erkläre
        erläutere beschreibe explique expliquer expliquez décris explica explicar describe discute spiega
        descrivi leg uit wyjaśnij объясни опиши поясни 解释 分析 说明 論述 論じ 説明 분석 설명 اشرح समझाइए
        açıkla jelaskan giải förklara selitä vysvětli steps step schritt paso étape passo pros cons advantages
        disadvantages vorteile nachteile avantages ventajas vantagens vantaggi desventajas преимущества
        недостатки 优点 缺点 利弊 長所 短所 장단 reasoning impact implications""",
    "write": """write compose draft create generate design develop plan brainstorm imagine pretend suggest
        recommend propose invent schreibe schreib verfasse entwirf erstelle plane écris écrire rédige imagine
        propose escribe escribir redacta crea escreva escrever redija scrivi scrivere schrijf napisz napíš
        напиши напишите сочини придумай 写一 写个 帮我 设计 创作 書いて 作成 써 작성 اكتب लिखें लिखो लिखिए yaz
        viết tulis skriv kirjoita napiš essay poem story letter email speech song novel script blog gedicht
        geschichte kurzgeschichte poème histoire cuento poema conto racconto verhaal opowiadanie рассказ
        стихотворение 小说 短篇 诗歌 物語 이야기 قصة कहानी hikâye puisi berättelse tips advice ideas strategy
        roleplay act""",
    "code": """code function program python java javascript typescript sql regex algorithm implement debug bug
        compile api class method script react rust golang haskell bash docker git linux funktion fonction
        función função funzione functie funkcję funkcja функцию функция програм 函数 代码 程序 関数 コー 함수
        دالة फ़ंक्शन fonksiyon fungsi hàm funktio funkci refactor query database array string loop error
        exception stack""",
    "maths": """prove proof solve derive compute calculate calculation equation integral derivative probability
        theorem triangle determine evaluate simplify sum beweise berechne löse ableitung démontre démontrer
        prouve calcule résous demuestra calcula resuelve demonstre resolva calcule dimostra calcola risolvi
        bewijs bereken udowodnij oblicz докажи вычисли реши 证明 计算 求解 多少 证明 計算 証明 解い 증명 계산
        أثبت احسب सिद्ध hesapla kanıtla hitung buktikan tính percent boxed remaining left cost costs each total
        average""",
    "many": """many much wieviel wie viele combien cuántos cuántas cuanto cuántos quanti quante quantos quantas
        hoeveel ile сколько 几个 幾個 いくつ いくら 몇 كم कितने कितना kaç bao berapa hur många kuinka kolik""",
    "who": """who whom whose wer wen wem qui quién quiénes quem chi wie kto кто хто 谁 誰 누구 누가 من किसने कौन
        kim siapa vem hvem kuka kdo""",
    "when": """when wann quand cuándo quando wanneer kiedy когда коли 何时 哪年 哪一 いつ 언제 متى कब zaman
        kapan när milloin kdy year jahr année año ano anno jaar roku году""",
    "where": """where wo où dónde onde dove waar gdzie где де 哪里 哪儿 どこ 어디 أين कहाँ nerede neresi mana
        var missä kde capital hauptstadt capitale hoofdstad stolica stolicą столица 首都 수도 عاصمة राजधानी
        başkenti ibu pääkaupunki""",
    "which": """which what welche welcher welches was quel quelle quels quelles cuál cuáles qué qual quais quale
        quali wat welk jaka jaki jakie который какая какой какие что 什么 哪个 何で 何を 무엇 어느 ما क्या कौन
        ne hangi apa vad mikä co name define meaning""",
    "step": """think reason careful carefully consequence happens happen would could should if suppose assume
        wenn si 如果 もし""",
}
_CUT = 6
_CUT_HANGUL = 2


def _keys() -> dict[str, str]:
    keys: dict[str, str] = {}
    for name, words in _WORDS.items():
        for word in words.split():
            # Chinese and Japanese are read character by character: their cues are pairs.
            if "\u3040" <= word[0] <= "\u9fff":
                keys.setdefault(" ".join(word[:2]) if len(word) > 1 else word, name)
            else:
                keys.setdefault(word[: _CUT_HANGUL if "\uac00" <= word[0] <= "\ud7a3" else _CUT], name)
    return keys


CUES: Mapping[str, str] = MappingProxyType(_keys())
"""Cut word, or pair of characters with a space between, to the task that it names."""
