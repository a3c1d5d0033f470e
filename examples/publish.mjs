// Announces one version of an agent and exits: all that Podium requires of a pod. Needs amqplib (npm ci).
//
// With PODIUM_AGENT_KEY, from `podium agents key NAME`, the announcement is signed.
//
// PODIUM_AMQP_URL=amqp://... AGENT_NAME=hello AGENTEX_DEPLOYMENT_ID=hello-v1 ACP_URL=http://10.0.0.7:8000 \
// node publish.mjs

import { createHmac, randomUUID } from 'node:crypto';
import { setTimeout } from 'node:timers/promises';
import amqp from 'amqplib';

const { AGENT_NAME: name, ACP_URL, AGENTEX_DEPLOYMENT_ID, PODIUM_AGENT_KEY, PODIUM_AMQP_URL } = process.env;
const body = {
  name,
  acp_url: ACP_URL,
  message_id: randomUUID(),
  registered_at: new Date().toISOString(),
  registration_metadata: { deployment_id: AGENTEX_DEPLOYMENT_ID },
};
const content = Buffer.from(JSON.stringify(body));
const headers = {};
if (PODIUM_AGENT_KEY) {
  const hmac = createHmac('sha256', PODIUM_AGENT_KEY).update(`${body.message_id}\n`).update(content);
  headers['x-podium-signature'] = `v1=${hmac.digest('hex')}`;
}

async function publish() {
  const connection = await amqp.connect(PODIUM_AMQP_URL, { timeout: 10_000 });
  connection.on('error', () => {}); // publish() fails and reports it
  try {
    const channel = await connection.createConfirmChannel();
    let unroutable = false;
    channel.on('error', () => {}); // publish() fails and reports it
    channel.on('return', () => { unroutable = true; });
    const options = { headers, contentType: 'application/json', persistent: true, mandatory: true };
    channel.publish('podium.registrations', `agent.${name}`, content, options);
    await channel.waitForConfirms();
    if (unroutable) throw new Error('no queue is bound to podium.registrations');
  } finally {
    await connection.close().catch(() => {});
  }
}

// Publish until the broker confirms. Retries send the same message, so Podium applies it once.
for (let announced = false; !announced; ) {
  try {
    await publish();
    announced = true;
  } catch (error) {
    console.log(`Not announced yet, trying again: ${error.message}`);
    await setTimeout(1000);
  }
}
console.log(`Announced ${name}.`);
