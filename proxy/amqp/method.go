// The method table: every class and method of AMQP 0-9-1 as RabbitMQ speaks it,
// with who may send it, what its arguments look like and which reply it awaits.

package amqp

// Method is a class id in the upper and a method id in the lower 16 bits.
type Method uint32

// Class is the method's class id.
func (m Method) Class() uint16 { return uint16(m >> 16) }

// ID is the method's id within its class.
func (m Method) ID() uint16 { return uint16(m) }

// Class ids.
const (
	ClassConnection = 10
	ClassChannel    = 20
	ClassAccess     = 30
	ClassExchange   = 40
	ClassQueue      = 50
	ClassBasic      = 60
	ClassConfirm    = 85
	ClassTx         = 90
)

// The methods, named as in the spec.
const (
	ConnectionStart          Method = 10<<16 | 10
	ConnectionStartOk        Method = 10<<16 | 11
	ConnectionSecure         Method = 10<<16 | 20
	ConnectionSecureOk       Method = 10<<16 | 21
	ConnectionTune           Method = 10<<16 | 30
	ConnectionTuneOk         Method = 10<<16 | 31
	ConnectionOpen           Method = 10<<16 | 40
	ConnectionOpenOk         Method = 10<<16 | 41
	ConnectionClose          Method = 10<<16 | 50
	ConnectionCloseOk        Method = 10<<16 | 51
	ConnectionBlocked        Method = 10<<16 | 60
	ConnectionUnblocked      Method = 10<<16 | 61
	ConnectionUpdateSecret   Method = 10<<16 | 70
	ConnectionUpdateSecretOk Method = 10<<16 | 71

	ChannelOpen    Method = 20<<16 | 10
	ChannelOpenOk  Method = 20<<16 | 11
	ChannelFlow    Method = 20<<16 | 20
	ChannelFlowOk  Method = 20<<16 | 21
	ChannelClose   Method = 20<<16 | 40
	ChannelCloseOk Method = 20<<16 | 41

	AccessRequest   Method = 30<<16 | 10
	AccessRequestOk Method = 30<<16 | 11

	ExchangeDeclare   Method = 40<<16 | 10
	ExchangeDeclareOk Method = 40<<16 | 11
	ExchangeDelete    Method = 40<<16 | 20
	ExchangeDeleteOk  Method = 40<<16 | 21
	ExchangeBind      Method = 40<<16 | 30
	ExchangeBindOk    Method = 40<<16 | 31
	ExchangeUnbind    Method = 40<<16 | 40
	ExchangeUnbindOk  Method = 40<<16 | 51

	QueueDeclare   Method = 50<<16 | 10
	QueueDeclareOk Method = 50<<16 | 11
	QueueBind      Method = 50<<16 | 20
	QueueBindOk    Method = 50<<16 | 21
	QueuePurge     Method = 50<<16 | 30
	QueuePurgeOk   Method = 50<<16 | 31
	QueueDelete    Method = 50<<16 | 40
	QueueDeleteOk  Method = 50<<16 | 41
	QueueUnbind    Method = 50<<16 | 50
	QueueUnbindOk  Method = 50<<16 | 51

	BasicQos          Method = 60<<16 | 10
	BasicQosOk        Method = 60<<16 | 11
	BasicConsume      Method = 60<<16 | 20
	BasicConsumeOk    Method = 60<<16 | 21
	BasicCancel       Method = 60<<16 | 30
	BasicCancelOk     Method = 60<<16 | 31
	BasicPublish      Method = 60<<16 | 40
	BasicReturn       Method = 60<<16 | 50
	BasicDeliver      Method = 60<<16 | 60
	BasicGet          Method = 60<<16 | 70
	BasicGetOk        Method = 60<<16 | 71
	BasicGetEmpty     Method = 60<<16 | 72
	BasicAck          Method = 60<<16 | 80
	BasicReject       Method = 60<<16 | 90
	BasicRecoverAsync Method = 60<<16 | 100
	BasicRecover      Method = 60<<16 | 110
	BasicRecoverOk    Method = 60<<16 | 111
	BasicNack         Method = 60<<16 | 120

	ConfirmSelect   Method = 85<<16 | 10
	ConfirmSelectOk Method = 85<<16 | 11

	TxSelect     Method = 90<<16 | 10
	TxSelectOk   Method = 90<<16 | 11
	TxCommit     Method = 90<<16 | 20
	TxCommitOk   Method = 90<<16 | 21
	TxRollback   Method = 90<<16 | 30
	TxRollbackOk Method = 90<<16 | 31
)

// Spec is what the table knows of a method.
type Spec struct {
	ID   Method
	Name string
	// Args has a letter an argument: b one octet of bits, h 16, l 32, q 64 bits,
	// s short string, S long string, T table.
	Args string
	// Client and Server say who may send it.
	Client, Server bool
	// Content is set when a content header and bodies follow.
	Content bool
	// Sync is set when the peer must reply, unless NoWait asks it not to.
	Sync bool
	// Reply is set when the method answers a Sync one.
	Reply bool
	// NoWait is the mask of the no-wait bit in the (only) octet of bits; 0: there is none.
	NoWait byte
}

var specs = []Spec{
	{}, // unknown
	{ID: ConnectionStart, Name: "connection.start", Args: "oOTSS", Server: true, Sync: true},
	{ID: ConnectionStartOk, Name: "connection.start_ok", Args: "TsSs", Client: true, Reply: true},
	{ID: ConnectionSecure, Name: "connection.secure", Args: "S", Server: true, Sync: true},
	{ID: ConnectionSecureOk, Name: "connection.secure_ok", Args: "S", Client: true, Reply: true},
	{ID: ConnectionTune, Name: "connection.tune", Args: "hlh", Server: true, Sync: true},
	{ID: ConnectionTuneOk, Name: "connection.tune_ok", Args: "hlh", Client: true, Reply: true},
	{ID: ConnectionOpen, Name: "connection.open", Args: "ssb", Client: true, Sync: true},
	{ID: ConnectionOpenOk, Name: "connection.open_ok", Args: "s", Server: true, Reply: true},
	{ID: ConnectionClose, Name: "connection.close", Args: "hshh", Client: true, Server: true, Sync: true},
	{ID: ConnectionCloseOk, Name: "connection.close_ok", Client: true, Server: true, Reply: true},
	{ID: ConnectionBlocked, Name: "connection.blocked", Args: "s", Server: true},
	{ID: ConnectionUnblocked, Name: "connection.unblocked", Server: true},
	{ID: ConnectionUpdateSecret, Name: "connection.update_secret", Args: "Ss", Client: true, Sync: true},
	{ID: ConnectionUpdateSecretOk, Name: "connection.update_secret_ok", Server: true, Reply: true},

	{ID: ChannelOpen, Name: "channel.open", Args: "s", Client: true, Sync: true},
	{ID: ChannelOpenOk, Name: "channel.open_ok", Args: "S", Server: true, Reply: true},
	{ID: ChannelFlow, Name: "channel.flow", Args: "b", Client: true, Server: true, Sync: true},
	{ID: ChannelFlowOk, Name: "channel.flow_ok", Args: "b", Client: true, Server: true, Reply: true},
	{ID: ChannelClose, Name: "channel.close", Args: "hshh", Client: true, Server: true, Sync: true},
	{ID: ChannelCloseOk, Name: "channel.close_ok", Client: true, Server: true, Reply: true},

	{ID: AccessRequest, Name: "access.request", Args: "sb", Client: true, Sync: true},
	{ID: AccessRequestOk, Name: "access.request_ok", Args: "h", Server: true, Reply: true},

	{ID: ExchangeDeclare, Name: "exchange.declare", Args: "hssbT", Client: true, Sync: true, NoWait: 1 << 4},
	{ID: ExchangeDeclareOk, Name: "exchange.declare_ok", Server: true, Reply: true},
	{ID: ExchangeDelete, Name: "exchange.delete", Args: "hsb", Client: true, Sync: true, NoWait: 1 << 1},
	{ID: ExchangeDeleteOk, Name: "exchange.delete_ok", Server: true, Reply: true},
	{ID: ExchangeBind, Name: "exchange.bind", Args: "hsssbT", Client: true, Sync: true, NoWait: 1},
	{ID: ExchangeBindOk, Name: "exchange.bind_ok", Server: true, Reply: true},
	{ID: ExchangeUnbind, Name: "exchange.unbind", Args: "hsssbT", Client: true, Sync: true, NoWait: 1},
	{ID: ExchangeUnbindOk, Name: "exchange.unbind_ok", Server: true, Reply: true},

	{ID: QueueDeclare, Name: "queue.declare", Args: "hsbT", Client: true, Sync: true, NoWait: 1 << 4},
	{ID: QueueDeclareOk, Name: "queue.declare_ok", Args: "sll", Server: true, Reply: true},
	{ID: QueueBind, Name: "queue.bind", Args: "hsssbT", Client: true, Sync: true, NoWait: 1},
	{ID: QueueBindOk, Name: "queue.bind_ok", Server: true, Reply: true},
	{ID: QueuePurge, Name: "queue.purge", Args: "hsb", Client: true, Sync: true, NoWait: 1},
	{ID: QueuePurgeOk, Name: "queue.purge_ok", Args: "l", Server: true, Reply: true},
	{ID: QueueDelete, Name: "queue.delete", Args: "hsb", Client: true, Sync: true, NoWait: 1 << 2},
	{ID: QueueDeleteOk, Name: "queue.delete_ok", Args: "l", Server: true, Reply: true},
	{ID: QueueUnbind, Name: "queue.unbind", Args: "hsssT", Client: true, Sync: true},
	{ID: QueueUnbindOk, Name: "queue.unbind_ok", Server: true, Reply: true},

	{ID: BasicQos, Name: "basic.qos", Args: "lhb", Client: true, Sync: true},
	{ID: BasicQosOk, Name: "basic.qos_ok", Server: true, Reply: true},
	{ID: BasicConsume, Name: "basic.consume", Args: "hssbT", Client: true, Sync: true, NoWait: 1 << 3},
	{ID: BasicConsumeOk, Name: "basic.consume_ok", Args: "s", Server: true, Reply: true},
	{ID: BasicCancel, Name: "basic.cancel", Args: "sb", Client: true, Server: true, Sync: true, NoWait: 1},
	{ID: BasicCancelOk, Name: "basic.cancel_ok", Args: "s", Client: true, Server: true, Reply: true},
	{ID: BasicPublish, Name: "basic.publish", Args: "hssb", Client: true, Content: true},
	{ID: BasicReturn, Name: "basic.return", Args: "hsss", Server: true, Content: true},
	{ID: BasicDeliver, Name: "basic.deliver", Args: "sqbss", Server: true, Content: true},
	{ID: BasicGet, Name: "basic.get", Args: "hsb", Client: true, Sync: true},
	{ID: BasicGetOk, Name: "basic.get_ok", Args: "qbssl", Server: true, Reply: true, Content: true},
	{ID: BasicGetEmpty, Name: "basic.get_empty", Args: "s", Server: true, Reply: true},
	{ID: BasicAck, Name: "basic.ack", Args: "qb", Client: true, Server: true},
	{ID: BasicReject, Name: "basic.reject", Args: "qb", Client: true},
	{ID: BasicRecoverAsync, Name: "basic.recover_async", Args: "b", Client: true},
	{ID: BasicRecover, Name: "basic.recover", Args: "b", Client: true, Sync: true},
	{ID: BasicRecoverOk, Name: "basic.recover_ok", Server: true, Reply: true},
	{ID: BasicNack, Name: "basic.nack", Args: "qb", Client: true, Server: true},

	{ID: ConfirmSelect, Name: "confirm.select", Args: "b", Client: true, Sync: true, NoWait: 1},
	{ID: ConfirmSelectOk, Name: "confirm.select_ok", Server: true, Reply: true},

	{ID: TxSelect, Name: "tx.select", Client: true, Sync: true},
	{ID: TxSelectOk, Name: "tx.select_ok", Server: true, Reply: true},
	{ID: TxCommit, Name: "tx.commit", Client: true, Sync: true},
	{ID: TxCommitOk, Name: "tx.commit_ok", Server: true, Reply: true},
	{ID: TxRollback, Name: "tx.rollback", Client: true, Sync: true},
	{ID: TxRollbackOk, Name: "tx.rollback_ok", Server: true, Reply: true},
}

// NumMethods is one more than the largest Index.
const NumMethods = 67

const maxClass, maxMethod = 90, 120

var methodIndex = func() (t [maxClass/5 + 1][maxMethod + 1]uint8) {
	if len(specs) != NumMethods {
		panic("amqp: NumMethods is not the length of the method table")
	}
	for i, s := range specs[1:] {
		t[s.ID.Class()/5][s.ID.ID()] = uint8(i + 1)
	}
	return t
}()

// Index is the method's place in the table, 1 to NumMethods-1, or 0 when it is unknown.
func (m Method) Index() int {
	class, id := m.Class(), m.ID()
	if class > maxClass || class%5 != 0 || id > maxMethod {
		return 0
	}
	return int(methodIndex[class/5][id])
}

// Spec is the method's entry in the table; for an unknown method one without a name.
func (m Method) Spec() *Spec { return &specs[m.Index()] }

func (m Method) String() string {
	if s := m.Spec(); s.Name != "" {
		return s.Name
	}
	return "unknown method " + itoa(int(m.Class())) + "." + itoa(int(m.ID()))
}
