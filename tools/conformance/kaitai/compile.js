// Compile spec/aibit.ksy: node compile.js KSY FOLDER [LANGUAGE ...]; python and javascript if none is named.
// Needs what package.json beside this file names: npm ci, in this folder or in one that holds copies of these files.

const fs = require('fs');
const path = require('path');
const compiler = require('kaitai-struct-compiler');
const yaml = require('yaml');

async function main([ksy, folder, ...languages]) {
  const description = yaml.parse(fs.readFileSync(ksy, 'utf8'));
  for (const language of languages.length ? languages : ['python', 'javascript']) {
    const files = await compiler.compile(language, description, null, false);
    for (const [name, text] of Object.entries(files)) {
      fs.writeFileSync(path.join(folder, name), text);
      console.log(path.join(folder, name));
    }
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error.message || error);
  process.exit(1);
});
