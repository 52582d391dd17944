//! Numbers as Close wrote them, in templates.

use super::*;

/// Numbers that are printed as Close wrote them are compared by what they are worth.
#[tokio::test]
async fn numbers_compare_by_their_value_however_they_are_written() {
    for (source, expected) in [
        (
            "{{ data.amount > 1 }} {{ data.amount < 2 }} {{ 2 > data.amount }} {{ 1 < data.amount }}",
            "true true true true",
        ),
        (
            "{{ data.amount == 1.5 }} {{ 1.5 != data.amount }} {{ data.amount >= 1.5 }} {{ data.amount <= 1.49 }}",
            "true false true false",
        ),
        (
            "{{ data.exp == 1000 }} {{ data.exp > 999 }} {{ data.exp < data.big }} {{ data.exp > data.amount }}",
            "true true true true",
        ),
        (
            "{{ data.big > 12345678901234567890122 }} {{ data.big == 12345678901234567890123 }}",
            "true true",
        ),
        (
            "{{ data.zero == 0 }} {{ data.none == data.zero }} {{ data.some < 0 }} {{ data.some > -1 }} {{ data.no == 0 }}",
            "true true true true true",
        ),
        (
            "{{ data.value > 1.5 }} {{ data.half < 1 }} {{ 'b' > 'a' }} {{ data.list == [1] }}",
            "true true true false",
        ),
        (
            "{{ data.amount is gt(1) }} {{ data.amount is lessthan 2 }} {{ data.amount is eq 1.5 }}",
            "true true true",
        ),
        ("{{ [data.exp, 5, data.amount] | select('>', 2) | join(',') }}", "1e3,5"),
        (
            "{% if data.amount > 2 %}more{% elif data.amount > 1 %}{{ data.amount }}{% endif %}",
            "1.50",
        ),
        (
            "{{ not data.amount > 1 }} {{ data.amount > 1 and data.exp > 1 }}",
            "false true",
        ),
        (
            "{% macro m(x) %}{{ x >= 1.50 }}{% endmacro %}{{ m(data.amount) }}{% for x in [data.exp] if x == 1e3 %}!{% endfor %}",
            "true!",
        ),
        (
            "{{ data.amount == 'x' }} {{ data.amount == none }} {{ data.nothing == none }}",
            "false false true",
        ),
    ] {
        assert_eq!(filled(source).await.unwrap().to_lowercase(), expected, "{source}");
    }
    let fault = filled("a\n{{ data.amount > data.never }}").await.unwrap_err();
    assert_eq!(fault.place.map(|(line, _)| line), Some(2), "{fault:?}");
    assert!(fault.text.starts_with("there is no such value"), "{fault:?}");
}

/// Numbers that are written otherwise than they would be printed, beside others.
const NUMBERS: &str = r#"{"data":{"a":1.50,"e":1e1,"m":1e-05,"z":-0,"h":1234567890123456789012345678901234567890,"x":1e999,
 "k":123456789012345678901.5,"t":1e23,"list":[1.50,2,1e1,-0.10],"pair":[[1.50,"b"],[1,"a"]],
 "items":[{"p":10.0,"n":"x"},{"p":9.50,"n":"b"},{"p":1e1,"n":"y"},{"p":100,"n":"z"}]}}"#;

async fn reckoned(source: &str) -> Result<String, Fault> {
    let job = Job {
        event: NUMBERS.into(),
        ..job(Some(Program::Template(template(source, Escape::None))), vec![])
    };
    match guard().render(vec![job]).await.unwrap().remove(0) {
        Made::Fault(fault) => Err(fault),
        made => Ok(payload(&made).to_owned()),
    }
}

#[tokio::test]
async fn numbers_are_ordered_and_found_by_their_value_and_stay_as_they_are_written() {
    for (source, expected) in [
        (
            "{{ [data.a, 2]|max }} {{ [data.a, 1]|max }} {{ [2, data.a]|min }} {{ [data.e, 9]|min }}",
            "2 1.50 1.50 9",
        ),
        (
            "{{ data.list|sort|join(' ') }}, {{ data.list|sort(reverse=true)|join(' ') }}",
            "-0.10 1.50 2 1e1, 1e1 2 1.50 -0.10",
        ),
        ("{{ data.items|sort(attribute='p')|map(attribute='n')|join }}", "bxyz"),
        (
            "{{ data.items|sort(attribute='p,n')|map(attribute='p')|join(' ') }}",
            "9.50 10.0 1e1 100",
        ),
        (
            "{{ data.items|max(attribute='p') }} {{ data.items|min(attribute='p') }}",
            r#"{"p":100,"n":"z"} {"p":9.50,"n":"b"}"#,
        ),
        (
            "{{ data.pair|sort }} {{ data.pair|min|tojson }}",
            r#"[[1,"a"], [1.50,"b"]] [1,"a"]"#,
        ),
        (
            "{% for g in data.items|groupby('p') %}{{ g.grouper }}:{{ g.list|length }} {% endfor %}{% for p, all in data.items|groupby(attribute='p') %}{{ p }}={{ all|map(attribute='n')|join('+') }} {% endfor %}",
            "9.50:1 10.0:2 100:1 9.50=b 10.0=x+y 100=z ",
        ),
        (
            "{{ [1.5, data.a, 10, data.e]|unique|join(' ') }} {{ [data.a, 1.5]|unique|tojson }}",
            "1.5 10 [1.50]",
        ),
        ("{{ data.items|unique(attribute='p')|map(attribute='n')|join }}", "xbz"),
        (
            "{% for k, v in {'b': data.e, 'a': 9, 'c': data.a}|dictsort(by='value') %}{{ k }}={{ v }} {% endfor %}",
            "c=1.50 a=9 b=1e1 ",
        ),
        (
            "{{ 10 in [data.e] }} {{ data.e in [10] }} {{ 10 not in data.list }} {{ data.a in [1] }} {{ 1.5 in data.list }} {{ 1.5 is in data.list }}",
            "True True False False True True",
        ),
        (
            "{{ data.e in {10: 1} }} {{ {10: 'ten'}[data.e] }} {{ data.list[data.z] }} {{ 'e1' in 'a1e1' }}",
            "True ten 1.50 True",
        ),
        (
            "{{ 1 < data.a < 2 }} {{ 2 < data.a < 3 }} {{ 1.5 == data.a == 1.50 }} {{ 9 < data.e in [10] }}",
            "True False True True",
        ),
        (
            "{{ [data.a, 2] == [1.5, 2] }} {{ [data.e] < [11] }} {{ data.list == [1.5, 2, 10, -0.1] }} {{ {'p': 1.5} == {'p': data.a} }}",
            "True True True True",
        ),
        (
            "{{ [data.a] == (1.5,) }} {{ ['b', 'A', 'c']|sort }} {{ [3, 1, 2]|sort }} {{ 'b' in ['a'] }}",
            "False ['A', 'b', 'c'] [1, 2, 3] False",
        ),
        (
            "{{ data.a is number }} {{ data.a is float }} {{ data.a is integer }} {{ data.z is integer }} {{ data.h is integer }} {{ data.a is string }}",
            "True True False True True False",
        ),
        (
            "{{ data.e is even }} {{ data.e is odd }} {{ data.e is divisibleby(5) }} {{ 20 is divisibleby(data.e) }} {{ data.h is even }} {{ data.a is even }}",
            "True False True True True False",
        ),
        (
            "{{ data.list|select('number')|join(' ') }} {{ data.list|select('>', 1)|join(' ') }}",
            "1.50 2 1e1 -0.10 1.50 2 1e1",
        ),
    ] {
        assert_eq!(reckoned(source).await.as_deref(), Ok(expected), "{source}");
    }
}

/// One order for all: by kind, and numbers among whatever else by what they are worth, however the list was before.
#[tokio::test]
async fn lists_of_all_kinds_have_one_order_however_they_were_before() {
    let huge = format!("1e{}", "9".repeat(60));
    let values = [
        "null",
        "-1.50",
        "false",
        "1e-05",
        "1.50",
        "true",
        "2",
        "9",
        "1e1",
        "10.0",
        "11",
        &huge,
        "\"A\"",
        "\"b\"",
        "[1]",
        "[1.50]",
        "[2]",
        "{\"a\":1}",
        "{\"a\":1.50}",
    ];
    let ordered =
        "null -1.50 false 1e-05 true 1.50 2 9 1e1 10.0 11 HUGE \"A\" \"b\" [1] [1.50] [2] {\"a\":1} {\"a\":1.50}";
    let ordered = ordered.replace("HUGE", &huge);
    let program = |source: &str| Some(Program::Template(template(source, Escape::None)));
    let made = async |source: &str, list: &str, pick: &str| {
        let job = Job {
            event: format!("{{\"list\":[{list}],\"items\":[{pick}]}}"),
            ..job(program(source), vec![])
        };
        payload(&guard().render(vec![job]).await.unwrap().remove(0)).to_owned()
    };
    for turn in 0..values.len() {
        let mut list = values.to_vec();
        list.rotate_left(turn);
        if turn % 2 == 1 {
            list.reverse();
        }
        // What is equal stays as it was.
        let (ten, other) = (
            list.iter().position(|one| *one == "1e1"),
            list.iter().position(|one| *one == "10.0"),
        );
        let ordered = if ten < other {
            ordered.clone()
        } else {
            ordered.replace("1e1 10.0", "10.0 1e1")
        };
        // Something lacks what the others are ordered by.
        let items: Vec<String> = list.iter().map(|one| format!("{{\"of\":{{\"p\":{one}}}}}")).collect();
        let (list, items) = (list.join(","), format!("{},{{}}", items.join(",")));
        let source = "{{ list|sort|map('tojson')|join(' ') }}\n{{ list|min|tojson }} {{ list|max|tojson }}\n\
             {% for one in items|sort(attribute='of.p') if one.of is defined %}{{ one.of.p|tojson }} {% endfor %}\n\
             {% for p, all in items|groupby('of.p', default=10) %}{{ p|tojson }}={{ all|length }} {% endfor %}\n{{ list|unique|list|length }}";
        let said = made(source, &list, &items).await;
        let said: Vec<&str> = said.lines().collect();
        assert_eq!(said[0], ordered, "{list}");
        assert_eq!(said[1], "null {\"a\":1.50}", "{list}");
        assert_eq!(said[2].trim_end(), ordered, "{list}");
        assert!(
            said[3].contains("=3 ") && said[3].matches('=').count() == 18,
            "{}",
            said[3]
        );
        assert_eq!(said[4], "18", "{list}");
    }
    let source =
        "{% for k, v in {list[1]: 'a', 2: 'b', list[0]: 'c', 'x': 'd', 11: 'e'}|dictsort %}{{ v }}{% endfor %}";
    assert_eq!(made(source, "1e1,1.50", "").await, "abced");
}

#[tokio::test]
async fn whatever_number_it_is_it_can_be_calculated_with() {
    for (source, expected) in [
        (
            "{{ data.a * 2 }} {{ 2 * data.a }} {{ -data.a }} {{ data.a + 1 }} {{ 1 - data.a }} {{ data.a + data.a }}",
            "3.0 3.0 -1.5 2.5 -0.5 3.0",
        ),
        (
            "{{ data.e / 4 }} {{ data.e // 3 }} {{ data.e % 3 }} {{ 2 ** data.e }} {{ data.z + 1 }} {{ -data.z }}",
            "2.5 3.0 1.0 1024.0 1 0",
        ),
        (
            "{{ data.list|sum }} {{ data.items|sum(attribute='p') }} {{ data.items|sum('p', data.a) }} {{ [[1], [2]]|sum(start=[]) }}",
            "13.4 129.5 131.0 [1, 2]",
        ),
        (
            "{{ data.a|round }} {{ data.m|round(5) == 0.00001 }} {{ data.a|abs }} {{ (0 - data.a)|abs }} {{ data.list|map('abs')|join(' ') }}",
            "2.0 True 1.50 1.5 1.50 2 1e1 0.10",
        ),
        (
            "{{ '%.2f|%d|%s|%6.1f|%%|%s'|format(data.a, data.e, data.a, data.e, 'x') }} {{ '%(n).1f %(m)s'|format(n=data.a, m=data.a) }}",
            "1.50|10|1.50|  10.0|%|x 1.5 1.50",
        ),
        (
            "{{ data.k|int }} {{ data.t|int }} {{ data.a|int }} {{ data.z|int }} {{ data.m|int }} {{ data.a|float }} {{ '7'|int }}",
            "123456789012345678901 100000000000000000000000 1 0 0 1.5 7",
        ),
        (
            "{{ data.e|money }} {{ data.items[0].p|money('EUR') }} {{ data.z|money }}",
            "0.10 0.10 EUR 0.00",
        ),
        (
            "{% set x = data.a %}{{ x }} {{ data.a ~ '!' }} {{ data.a|string|length }} {{ data.a|default(1) }} {{ data.none|default(data.a) }}",
            "1.50 1.50! 4 1.50 1.50",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for i in data.items %}{% set ns.n = ns.n + i.p %}{% endfor %}{{ ns.n }}",
            "129.5",
        ),
        (
            "{% macro twice(n) %}{{ n * 2 }}{% endmacro %}{{ twice(data.a) }}{% if data.a * 2 == 3 and data.e - 1 > 8 %} yes{% endif %} {{ 'a' if data.e + 1 > 10 else 'b' }}",
            "3.0 yes a",
        ),
        (
            "{{ 'a' + 'b' }} {{ [1] + [2] }} {{ 'ab' * 2 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ -3 }}",
            "ab [1, 2] abab 3 3.5 8 -3",
        ),
    ] {
        assert_eq!(reckoned(source).await.as_deref(), Ok(expected), "{source}");
    }
    for (source, place, said) in [
        ("a\n{{ data.x * 2 }}", (2, 4), "it is too large to be calculated with"),
        ("a\n{{ data.a + data.never }}", (2, 4), "invalid operation"),
        ("{{ data.a + 'x' }}", (1, 4), "invalid operation"),
        ("{{ data.x|int }}", (1, 11), "it is too large to be calculated with"),
        ("{{ 5 is divisibleby(0) }}", (1, 1), "nothing is divisible by zero"),
        ("{{ data.a|money }}", (1, 11), "money wants a whole number of cents"),
    ] {
        let fault = reckoned(source).await.unwrap_err();
        assert!(fault.text.contains(said), "{source}: {fault:?}");
        assert_eq!(fault.place.map(|(line, _)| line), Some(place.0), "{source}: {fault:?}");
        assert!(place.1 == 1 || fault.place == Some(place), "{source}: {fault:?}");
    }
}

/// Whatever else HTML has: what is added to it is escaped as before.
#[tokio::test]
async fn arithmetic_changes_nothing_for_texts_with_markup() {
    let source = "{{ ('<b>'|safe) + data.name }}";
    let made = one(&guard(), Program::Template(template(source, Escape::Html))).await;
    assert_eq!(payload(&made), "<b>A &amp; &lt;B&gt; &quot;C&quot;");
}
