// Where an answer may differ: by a race in the broker itself, or through the proxy, each
// with its reason.

package hazard

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
}

type exception struct{ answer, why string }

// proxied has answers that differ through the proxy on purpose.
var proxied = map[string]exception{
	"content body beyond the announced size": {`connection.close(ch 0) 501 by 60.40 "FRAME_ERROR"`,
		"RabbitMQ before 4.1 hangs the channel; newer ones answer so"},
}

// spreads has the cases whose hard error reaches the others of a shared upstream once,
// since nothing tells it beforehand, with why nothing does.
var spreads = map[string]string{}
