// Method frames that the proxy itself sends, appended whole to a buffer.

package amqp

import "encoding/binary"

// BeginMethod appends a method frame's header, class and method; append the arguments
// and give the result to EndMethod with the same start, the length before.
func BeginMethod(dst []byte, channel uint16, m Method) []byte {
	dst = append(dst, FrameMethod, byte(channel>>8), byte(channel), 0, 0, 0, 0)
	return binary.BigEndian.AppendUint32(dst, uint32(m))
}

// EndMethod fills in the size of the frame that began at start and closes it.
func EndMethod(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start+3:], uint32(len(dst)-start-HeaderLen))
	return append(dst, FrameEnd)
}

// AppendMethod appends a whole method frame with the given, already encoded arguments.
func AppendMethod(dst []byte, channel uint16, m Method, args ...byte) []byte {
	start := len(dst)
	dst = BeginMethod(dst, channel, m)
	dst = append(dst, args...)
	return EndMethod(dst, start)
}

// AppendClose appends connection.close (channel 0) or channel.close.
func AppendClose(dst []byte, channel uint16, e *Error) []byte {
	m := ChannelClose
	if channel == 0 {
		m = ConnectionClose
	}
	start := len(dst)
	dst = BeginMethod(dst, channel, m)
	dst = binary.BigEndian.AppendUint16(dst, e.Code)
	dst = AppendShortStr(dst, e.Text)
	dst = binary.BigEndian.AppendUint32(dst, uint32(e.Method))
	return EndMethod(dst, start)
}

// ParseClose reads connection.close or channel.close.
func ParseClose(f Frame) *Error {
	a := ReadArgs(f)
	return &Error{Code: a.Short(), Text: string(a.Str()), Method: Method(a.Long())}
}

// AppendTune appends connection.tune or connection.tune-ok.
func AppendTune(dst []byte, m Method, t Tune) []byte {
	start := len(dst)
	dst = BeginMethod(dst, 0, m)
	dst = binary.BigEndian.AppendUint16(dst, t.ChannelMax)
	dst = binary.BigEndian.AppendUint32(dst, t.FrameMax)
	dst = binary.BigEndian.AppendUint16(dst, t.Heartbeat)
	return EndMethod(dst, start)
}

// Tune is what connection.tune offers and tune-ok settles.
type Tune struct {
	ChannelMax uint16 // 0: 65535
	FrameMax   uint32 // octets of a whole frame; 0: no bound
	Heartbeat  uint16 // seconds; 0: none
}

// ParseTune reads connection.tune or connection.tune-ok.
func ParseTune(f Frame) (t Tune, ok bool) {
	a := ReadArgs(f)
	t = Tune{ChannelMax: a.Short(), FrameMax: a.Long(), Heartbeat: a.Short()}
	return t, !a.Bad
}

// AppendStart appends connection.start with the inside of the server-properties.
func AppendStart(dst []byte, properties []byte, mechanisms, locales string) []byte {
	start := len(dst)
	dst = BeginMethod(dst, 0, ConnectionStart)
	dst = append(dst, 0, 9)
	dst = AppendLongStr(dst, properties)
	dst = AppendLongStr(dst, mechanisms)
	dst = AppendLongStr(dst, locales)
	return EndMethod(dst, start)
}

// AppendStartOk appends connection.start-ok with the inside of the client-properties.
func AppendStartOk(dst []byte, properties []byte, mechanism string, response []byte, locale string) []byte {
	start := len(dst)
	dst = BeginMethod(dst, 0, ConnectionStartOk)
	dst = AppendLongStr(dst, properties)
	dst = AppendShortStr(dst, mechanism)
	dst = AppendLongStr(dst, response)
	dst = AppendShortStr(dst, locale)
	return EndMethod(dst, start)
}

// AppendOpen appends connection.open.
func AppendOpen(dst []byte, vhost string) []byte {
	start := len(dst)
	dst = BeginMethod(dst, 0, ConnectionOpen)
	dst = AppendShortStr(dst, vhost)
	dst = append(dst, 0, 0)
	return EndMethod(dst, start)
}

// AppendQos appends basic.qos.
func AppendQos(dst []byte, channel uint16, prefetch uint16, global bool) []byte {
	g := byte(0)
	if global {
		g = 1
	}
	return AppendMethod(dst, channel, BasicQos, 0, 0, 0, 0, byte(prefetch>>8), byte(prefetch), g)
}
