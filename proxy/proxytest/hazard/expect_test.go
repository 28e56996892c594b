//go:build linux

// Where an answer may differ: by a race in the broker itself, or through the proxy, each
// with its reason.

package hazard

import "strings"

// racy has further answers of cases whose outcome is a race within the broker.
var racy = map[string][]string{
	"two channel.close at once": {
		"channel.close_ok(ch 1)",
		`channel.close_ok(ch 1); connection.close(ch 0) 504 by 20.40 "CHANNEL_ERROR"`,
	},
	"channel.close and channel.open at once": {
		"channel.close_ok(ch 1); channel.open_ok(ch 1)",
		`connection.close(ch 0) 504 by 20.10 "CHANNEL_ERROR"`,
		`channel.close_ok(ch 1); connection.close(ch 0) 504 by 20.10 "CHANNEL_ERROR"`,
	},
	"channel.close and a declare at once": {
		"channel.close_ok(ch 1)",
		`channel.close_ok(ch 1); connection.close(ch 0) 504 by 50.10 "CHANNEL_ERROR"`,
	},
	"a method behind an unanswered commit, classic queue": {
		"tx.commit_ok(ch 1); queue.declare_ok(ch 1)",
		`tx.commit_ok(ch 1); connection.close(ch 0) 504 by 50.10 "CHANNEL_ERROR"`,
	},
	"a method behind an unanswered commit, quorum queue":      {"tx.commit_ok(ch 1); queue.declare_ok(ch 1)"},
	"a publish behind an unanswered commit, quorum queue":     {"tx.commit_ok(ch 1)"},
	"a commit behind an unanswered commit, quorum queue":      {"tx.commit_ok(ch 1); tx.commit_ok(ch 1)"},
	"channel.close behind an unanswered commit, quorum queue": {"tx.commit_ok(ch 1); channel.close_ok(ch 1)"},
	"soft error, then frames, then reopen without close-ok":   {`connection.close(ch 0) 504 by 20.10 "CHANNEL_ERROR"`},
	"stream queue: delete if-unused, in use":                  {"queue.delete_ok(ch 1)", "basic.cancel(ch 1); queue.delete_ok(ch 1)"},
	"stream queue: recover a delivery": {
		"basic.recover_ok(ch 1); basic.consume_ok(ch 1)",
		"basic.consume_ok(ch 1); basic.recover_ok(ch 1); basic.deliver(ch 1); header(ch 1, 1); body(ch 1, 1)",
		"basic.consume_ok(ch 1); basic.recover_ok(ch 1)",
		"basic.consume_ok(ch 1); basic.deliver(ch 1); header(ch 1, 1); body(ch 1, 1); basic.recover_ok(ch 1)",
	},
	"stream queue: nack requeue a delivery": {"basic.consume_ok(ch 1)"},
}

type exception struct{ answer, why string }

const (
	atOnce   = "the proxy judges a publish by its method, the broker when its content is whole"
	tooBig   = "max_message_size is judged by the header, before the body is read; the broker waits for the body"
	surprise = "newer RabbitMQ refuses what 3.10 and 4.0 let through, and closes the connection"
	internal = "basic.credit is internal to the broker and gone in 4.0"
	shared   = "what is in order by itself but needs a connection of one's own is refused on a shared one"
	which    = "two things are wrong, the proxy names the other one"
	ignored  = "the broker finds no queue under a name that can be no address either"
)

// proxied has answers that differ through the proxy on purpose.
var proxied = map[string]exception{
	"content body beyond the announced size":      {`connection.close(ch 0) 501 by 60.40 "FRAME_ERROR"`, surprise},
	"body size 2^63":                              {`connection.close(ch 0) 501 by 60.40 "FRAME_ERROR"`, tooBig},
	"body size 512 MiB + 1":                       {`connection.close(ch 0) 501 by 60.40 "FRAME_ERROR"`, tooBig},
	"body size 128 MiB + 1":                       {`connection.close(ch 0) 501 by 60.40 "FRAME_ERROR"`, tooBig},
	"basic.publish on an unopened channel":        {`connection.close(ch 0) 504 by 60.40 "CHANNEL_ERROR"`, atOnce},
	"publish immediate, no body yet":              {`connection.close(ch 0) 540 by 60.40 "NOT_IMPLEMENTED"`, atOnce},
	"basic.return from a client":                  {`connection.close(ch 0) 503 by 60.50 "COMMAND_INVALID"`, atOnce},
	"basic.deliver from a client":                 {`connection.close(ch 0) 503 by 60.60 "COMMAND_INVALID"`, atOnce},
	"basic.get_ok from a client":                  {`connection.close(ch 0) 503 by 60.71 "COMMAND_INVALID"`, atOnce},
	"connection.update-secret":                    {`connection.close(ch 0) 530 by 10.70 "NOT_ALLOWED"`, shared},
	"surrogate in UTF-8: queue.declare queue":     {`connection.close(ch 0) 501 by 0.0 "FRAME_ERROR"`, surprise},
	"beyond U+10FFFF: queue.declare queue":        {`connection.close(ch 0) 501 by 0.0 "FRAME_ERROR"`, surprise},
	"classic queue named with surrogates":         {`connection.close(ch 0) 501 by 0.0 "FRAME_ERROR"`, surprise},
	"stream queue named with surrogates":          {`connection.close(ch 0) 501 by 0.0 "FRAME_ERROR"`, surprise},
	"quorum queue named with surrogates":          {`connection.close(ch 0) 501 by 0.0 "FRAME_ERROR"`, surprise},
	"reply-to consumer's tag on a queue":          {`connection.close(ch 0) 530 by 60.20 "NOT_ALLOWED"`, surprise},
	"reply-to consumer twice with one tag":        {`connection.close(ch 0) 530 by 60.20 "NOT_ALLOWED"`, surprise},
	"unknown method 60.200":                       {`connection.close(ch 0) 503 by 60.200 "COMMAND_INVALID"`, internal},
	"basic.credit of 7 octets":                    {`connection.close(ch 0) 503 by 60.200 "COMMAND_INVALID"`, internal},
	"basic.credit of 6 octets":                    {`connection.close(ch 0) 503 by 60.200 "COMMAND_INVALID"`, internal},
	"basic.credit of an unknown consumer":         {`connection.close(ch 0) 503 by 60.200 "COMMAND_INVALID"`, internal},
	"table in client-properties again":            {`connection.close(ch 0) 504 by 10.11 "CHANNEL_ERROR"`, which},
	"bad UTF-8: connection.open vhost again":      {`connection.close(ch 0) 504 by 10.40 "CHANNEL_ERROR"`, which},
	"garbled method on an unopened channel":       {`connection.close(ch 0) 504 by 50.10 "CHANNEL_ERROR"`, which},
	"heartbeat with a payload on channel 1":       {`connection.close(ch 0) 505 by 0.0 "UNEXPECTED_FRAME"`, which},
	"content header of 0 octets without a method": {`connection.close(ch 0) 505 by 0.0 "UNEXPECTED_FRAME"`, which},
	"bad UTF-8: connection.close text":            {`connection.close(ch 0) 541 by 0.0 "INTERNAL_ERROR"`, which},
	"bad UTF-8: update-secret reason":             {`connection.close(ch 0) 541 by 0.0 "INTERNAL_ERROR"`, which},
}

// exceptionOf also knows those that come in families.
func exceptionOf(name string) (exception, bool) {
	if e, ok := proxied[name]; ok {
		return e, true
	}
	if name == "CC reply-to of a term that is no pid" {
		return exception{`connection.close(ch 0) 502 by 60.40 "SYNTAX_ERROR"`, ignored}, true
	}
	if strings.Contains(name, "reply-to of one dot") || strings.Contains(name, "reply-to of an empty pid") || strings.Contains(name, "reply-to of three parts") ||
		strings.Contains(name, "reply-to of a term that is no pid") {
		return exception{`connection.close(ch 0) 541 by 0.0 "INTERNAL_ERROR"`, ignored}, true
	}
	if strings.HasSuffix(name, "000 tables deep") || strings.HasSuffix(name, "000 arrays deep") {
		by := "60.40"
		switch {
		case strings.Contains(name, "exchange.declare"):
			by = "40.10"
		case strings.Contains(name, "queue.bind"):
			by = "50.20"
		}
		return exception{"connection.close(ch 0) 502 by " + by + ` "SYNTAX_ERROR"`,
			"the proxy bounds the depth of tables, the broker does not"}, true
	}
	return exception{}, false
}

// newest has the proxy's answers where 4.3 is of another mind than 3.10 and 4.0: it refuses
// what 4.3 has come to bear, and on a shared upstream what ends the connection since then
// where it comes to a stream.
func newest(name string) []string {
	switch name {
	case "properties: bad UTF-8 in reply-to", "properties, into a queue: bad UTF-8 in reply-to",
		"classic queue, odd property bit 9", "quorum queue, odd property bit 9":
		return []string{`connection.close(ch 0) 541 by 0.0 "INTERNAL_ERROR"`} // as the stream's own: for what is shared only
	case "basic.cancel-ok of an unknown consumer", "consumer tag twice, the first cancelled by cancel-ok":
		return []string{`connection.close(ch 0) 503 by 60.31 "COMMAND_INVALID"`}
	}
	if !strings.Contains(name, "reply-to") {
		return nil
	}
	for _, bad := range []string{"of bad base64", "of an atom", "of garbage", "of a pid cut off", "g1h2AA==.junk"} {
		if strings.HasSuffix(name, bad) {
			return []string{`connection.close(ch 0) 541 by 0.0 "INTERNAL_ERROR"`, `connection.close(ch 0) 502 by 60.40 "SYNTAX_ERROR"`}
		}
	}
	return nil
}

// spreads has the cases whose hard error reaches the others of a shared upstream once,
// since nothing in them tells it beforehand, with why. Only what is a hard error at the
// broker may.
func spreads(name string) bool {
	for _, part := range []string{
		"stream queue: purge",          // what type the queue has
		"stream queue: get",            // likewise
		"stream queue: consume no-ack", // likewise
		"stream queue, header",         // a header that streams cannot store
		"stream queue, x-header",
		"stream queue: publish of odd headers",
		"stream queue: publish with x-stream-filter-value",
		"reply-to of a pid elsewhere", // 3.10 knows the nodes, the proxy does not
		"reply-to of an old pid",
		"quorum queue: delete if-unused, in use",   // the channel has a consumer and cannot move
		"quorum queue: delete if-empty, not empty", // the channel has published and cannot move
	} {
		if strings.Contains(name, part) {
			return true
		}
	}
	return false
}
