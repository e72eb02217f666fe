# From the exceptions and the results of tests/vm/posix to a table in Markdown.
# Ends with 1 if something fails on the share for which there is no excuse.
#
# An exception is a line: SUITE TEST [WORD=VALUE...], where the words are
# kernel=, fs= and option= and all of them have to fit.

FNR == NR {
    sub(/#.*/, "")
    if (NF >= 2) {
        exceptions++
        for (field = 1; field <= NF; field++)
            exception[exceptions, field] = $field
        fields[exceptions] = NF
    }
    next
}

FNR == 1 {
    FS = "|"
    $0 = $0
}

{
    run = $1 "|" $2 "|" $3 "|" $4
    if (!(run in seen)) {
        seen[run] = 1
        order[++runs] = run
    }
    count[run, $6]++
    if ($6 == "FAILED")
        failed[run] = failed[run] $5 " "
    result[$1, $2, $4, $5] = result[$1, $2, $4, $5] $6
}

function excused(kernel, fs, options, suite, test,    number, field, pair, fits) {
    for (number = 1; number <= exceptions; number++) {
        if (exception[number, 1] != suite || exception[number, 2] != test)
            continue
        fits = 1
        for (field = 3; field <= fields[number]; field++) {
            split(exception[number, field], pair, "=")
            if (pair[1] == "kernel" && pair[2] != kernel) fits = 0
            if (pair[1] == "fs" && pair[2] != fs) fits = 0
            if (pair[1] == "option" && index(" " options " ", " " substr(exception[number, field], 8) " ") == 0) fits = 0
        }
        if (fits)
            return 1
    }
    return 0
}

function cell(run,    text) {
    text = count[run, "ok"] + 0 " ok"
    if (count[run, "FAILED"]) text = text ", " count[run, "FAILED"] " failed"
    if (count[run, "skipped"]) text = text ", " count[run, "skipped"] " skipped"
    return text
}

END {
    print "| kernel | host's file system | options of the daemon | suite | share | local ext4 | host itself | fails on the share only |"
    print "|---|---|---|---|---|---|---|---|"
    for (number = 1; number <= runs; number++) {
        run = order[number]
        split(run, part, "|")
        if (part[1] == "host" || part[2] == "local")
            continue
        only = ""
        names = split(failed[run], name, " ")
        for (item = 1; item <= names; item++) {
            test = name[item]
            if (result[part[1], "local", part[4], test] ~ /FAILED/)
                continue
            if (excused(part[1], part[2], part[3], part[4], test)) {
                only = only " " test " (known)"
            } else if (result["host", part[2], part[4], test] ~ /FAILED/) {
                only = only " " test " (on the host too)"
            } else {
                only = only " **" test "**"
                bad++
            }
        }
        there = part[1] "|local||" part[4]
        host = "host|" part[2] "||" part[4]
        printf "| %s | %s | %s | %s | %s | %s | %s |%s |\n", part[1], part[2], part[3], part[4],
            cell(run), there in seen ? cell(there) : "", host in seen ? cell(host) : "", only
    }
    if (bad)
        print "\n" bad " failures without an excuse."
    exit bad ? 1 : 0
}
