// What node's amqplib hears of each login: PORT CAFILE ATTEMPTS.
'use strict';
const amqp = require('amqplib');
const {readFileSync} = require('fs');
const [port, ca, file] = process.argv.slice(2);
const make = amqp.credentials;

async function verdict(a) {
  const how = {PLAIN: make.plain, AMQPLAIN: make.amqplain, EXTERNAL: make.external}[a.mechanism];
  try {
    const conn = await amqp.connect({protocol: 'amqps', hostname: 'localhost', port: Number(port), vhost: '/'},
      {credentials: how(a.user, a.password), ca: [readFileSync(ca)], ...(a.cert && {cert: readFileSync(a.cert), key: readFileSync(a.key)})});
    await conn.createChannel();
    await conn.close();
    return '<nil>';
  } catch (err) {
    return String(err);
  }
}

(async () => {
  const heard = [];
  for (const a of JSON.parse(readFileSync(file))) heard.push(await verdict(a));
  console.log(JSON.stringify(heard));
})();
