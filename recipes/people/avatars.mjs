// Draws avatars: node avatars.mjs NODE_MODULES < drawings.json > svgs.json
// drawings.json is a list of {"style": NAME, "options": {...}}, svgs.json a list of SVG texts.
import { readFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const modules = `${process.argv[2]}/@dicebear`;
const { Avatar, Style } = await import(pathToFileURL(`${modules}/core/lib/index.js`));
const styles = {};
const svgs = JSON.parse(readFileSync(0, 'utf8')).map(({ style, options }) => {
  styles[style] ??= new Style(JSON.parse(readFileSync(`${modules}/styles/src/${style}.json`)));
  // The seed decides what the options leave open, which is nothing that shows.
  return new Avatar(styles[style], { seed: '0', backgroundColor: [], ...options }).toString();
});
process.stdout.write(JSON.stringify(svgs));
